#!/usr/bin/env python
"""Measure quantized avl-tiny against fp32: perplexity, divergence, task scores, bytes.

    .venv/bin/python scripts/quantization.py --samples 100 --json benchmarks/quantization.json

Every variant is exported and run by ONNX Runtime as users run it. `perplexity` is teacher-forced
over the held-out answers' tokens; `divergence` is KL(fp32 || variant) over the same tokens, in
thousandths of a nat, and tells methods apart that perplexity does not. `weights_bytes` counts the
decoder's linears, `package_bytes` everything. Scores are those of scripts/quality.py, dense.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from avl_export.export import export
from avl_export.options import Options
from avl_export.plan import make_plan
from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.evaluate.measure import forced_logits
from avl_runtime.tasks import TASKS, samples
from avl_runtime.tasks.sample import Task
from avl_runtime.tasks.metrics import score

Answers = list[tuple[np.ndarray, np.ndarray]]
ALL = ("embedding", "lm_head", "vision")
BATCH = 20
VARIANTS: tuple[dict[str, Any], ...] = (
    {"quantize": "none"},
    {"quantize": "int8", "quantize_method": "rtn"},
    {"quantize": "int8", "quantize_method": "clip"},
    {"quantize": "int8", "quantize_method": "rtn", "block_size": 64},
    *(
        {"quantize": "int4", "quantize_method": method, "block_size": block}
        for block in (32, 64)
        for method in ("rtn", "clip", "hqq")
    ),
    {"quantize": "int8", "quantize_method": "rtn", "quantize_also": ALL},
    {"quantize": "int4", "quantize_method": "clip", "block_size": 64, "quantize_also": ALL},
)


def make(folder: Path, variant: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Export avl-tiny; returns the package and its plan's report."""
    out = folder / "-".join(str(value) for value in variant.values()).replace("'", "")
    plan = make_plan(Options("avl-tiny", out, check=False, **variant))
    export(plan)
    return out, plan.report()


def log_probabilities(model: LVLM, count: int) -> Answers:
    """Of each held-out sample: log-probabilities [T, V] along its answer, and its tokens [T]."""
    found = []
    tokenizer, tokens = model.processor.tokenizer, model.package.manifest.tokens
    for task in TASKS:
        for sample in samples(task, "held-out", count):
            # A reply begins with the space that joins it to "ASSISTANT:", and ends with the end.
            ids = tokenizer.encode(f" {sample.answer}", add_special_tokens=False).ids
            answer = np.array([*ids, tokens.eos[0]])
            prompt = model.processor.encode(sample.prompt, [sample.image])
            logits = forced_logits(model.engine, prompt, parse("dense").plan(), tuple(answer))
            wide = logits.astype(np.float64)
            wide -= wide.max(1, keepdims=True)
            found.append((wide - np.log(np.exp(wide).sum(1, keepdims=True)), answer))
    return found


def measure(package: Path, count: int, theirs: Answers | None) -> tuple[dict[str, Any], Answers]:
    """Perplexity and scores of one package, its divergence from `theirs`, and its own answers."""
    model = LVLM.load(package)
    ours = log_probabilities(model, count)
    theirs = theirs or ours
    loss = np.concatenate([-p[np.arange(len(t)), t] for p, t in ours])
    divergence = np.concatenate(
        [(np.exp(q) * (q - p)).sum(1) for (p, _), (q, _) in zip(ours, theirs, strict=True)]
    )
    scores = {task: round(task_score(model, task, count), 4) for task in TASKS}
    print(f"{package.name}: {scores}", file=sys.stderr)
    found = {
        "perplexity": round(math.exp(float(loss.mean())), 5),
        "divergence": round(1e3 * float(divergence.mean()), 4),
        "scores": scores,
    }
    return found, ours


def task_score(model: LVLM, task: Task, count: int) -> float:
    """Mean score over held-out samples, whose replies are generated in batches."""
    found = []
    for first in range(0, count, BATCH):
        asked = list(samples(task, "held-out", min(BATCH, count - first), first))
        replies = model.generate_batch(
            [sample.prompt for sample in asked],
            [[sample.image] for sample in asked],
            max_new_tokens=64,
        )
        found += [score(one, reply.text) for one, reply in zip(asked, replies, strict=True)]
    return float(np.mean(found))


def row(variant: dict[str, Any], plan: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """One variant as a JSON object."""
    quantization = plan["quantization"] or {}
    decoder = [c["bytes"] for c in plan["components"] if c["name"].startswith("decoder")]
    return {
        "bits": {"none": 32, "int8": 8, "int4": 4}[variant["quantize"]],
        "method": quantization.get("method"),
        "block_size": quantization.get("block_size"),
        "parts": quantization.get("parts", []),
        **found,
        "decoder_bytes": sum(decoder),
        "weights_bytes": plan["copied_bytes"] or plan["weight_bytes"],
    }


def table(report: dict[str, Any]) -> str:
    """A Markdown table."""
    lines = [
        "| weights | perplexity | divergence | caption F1 | vqa exact | ocr characters | decoder |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in report["variants"]:
        name = "the checkpoint's, in fp32"
        if one["method"] is not None:
            block = f"blocks of {one['block_size']}" if one["block_size"] else "one scale an output"
            also = ", everything" if len(one["parts"]) > 1 else ""
            name = f"int{one['bits']}, {one['method']}, {block}{also}"
        scores = " | ".join(f"{one['scores'][task]:.3f}" for task in TASKS)
        lines.append(
            f"| {name} | {one['perplexity']:.4f} | {one['divergence']:.2f} | {scores} | "
            f"{one['decoder_bytes'] / (1 << 20):.2f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=100, help="held-out samples a task")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, theirs = [], None
        for variant in VARIANTS:
            package, plan = make(Path(folder), variant)
            found, ours = measure(package, args.samples, theirs)
            theirs = theirs or ours
            rows.append(row(variant, plan, found))
    report = {
        "model": "avl-tiny",
        "samples_per_task": args.samples,
        "machine": f"{platform.machine()}, {platform.system()}",
        "date": time.strftime("%Y-%m-%d"),
        "variants": rows,
    }
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    else:
        print(json.dumps(report, indent=2))
    print(table(report), file=sys.stderr)


if __name__ == "__main__":
    main()

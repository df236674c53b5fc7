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
from concurrent.futures import ProcessPoolExecutor
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
from avl_runtime.tasks.metrics import score

ALL = ("embedding", "lm_head", "vision")
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


def log_probabilities(model: LVLM, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
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


def measure(package: Path, reference: Path, count: int) -> dict[str, Any]:
    """Perplexity, divergence from `reference` and scores of one package."""
    model = LVLM.load(package, threads=1)
    ours = log_probabilities(model, count)
    theirs = ours
    if package != reference:
        theirs = log_probabilities(LVLM.load(reference, threads=1), count)
    loss = np.concatenate([-p[np.arange(len(t)), t] for p, t in ours])
    divergence = np.concatenate(
        [(np.exp(q) * (q - p)).sum(1) for (p, _), (q, _) in zip(ours, theirs, strict=True)]
    )
    scores = {}
    for task in TASKS:
        replies = (
            score(sample, model.generate(sample.prompt, [sample.image], max_new_tokens=64).text)
            for sample in samples(task, "held-out", count)
        )
        scores[task] = round(float(np.mean(list(replies))), 4)
    print(f"{package.name}: {scores}", file=sys.stderr)
    return {
        "perplexity": round(math.exp(float(loss.mean())), 5),
        "divergence": round(1e3 * float(divergence.mean()), 4),
        "scores": scores,
    }


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
    parser.add_argument("--jobs", type=int, default=1, help="variants measured at once")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = [make(Path(folder), variant) for variant in VARIANTS]
        with ProcessPoolExecutor(args.jobs) as pool:
            started = [
                pool.submit(measure, package, made[0][0], args.samples) for package, _ in made
            ]
            found = [run.result() for run in started]
    report = {
        "model": "avl-tiny",
        "samples_per_task": args.samples,
        "machine": f"{platform.machine()}, {platform.system()}",
        "date": time.strftime("%Y-%m-%d"),
        "variants": [
            row(variant, plan, one)
            for variant, (_, plan), one in zip(VARIANTS, made, found, strict=True)
        ],
    }
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    else:
        print(json.dumps(report, indent=2))
    print(table(report), file=sys.stderr)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Measure quantized avl-tiny against fp32: perplexity, divergence, task scores, bytes.

    .venv/bin/python scripts/quantization.py --samples 100 --json benchmarks/quantization.json

Every variant is exported and run by ONNX Runtime as users run it. `perplexity` is teacher-forced
over the held-out answers' tokens; `divergence` is KL(fp32 || variant) over the same tokens, in
thousandths of a nat. `output_error` is the mean over the linears of the decoder's layers of
|(V - W) X| / |W X|, for the weights V that codes stand for and the activations X of other
pictures: it tells methods apart where a small model's answers do not. `decoder_bytes` counts what
the decoder's graphs read, `weights_bytes` all weights. Scores are those of avl-eval,
dense. `linear_ms` is the shortest time that ONNX Runtime takes on one thread for one row through a
linear of 4096 x 4096, as the runtime loads it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from avl_export.export import export
from avl_export.options import Options
from avl_export.plan.plan import Plan, make_plan
from avl_export.quantize.blocks import quantize as quantize_rows
from avl_export.quantize.packing import pack_int4
from avl_export.quantize.reading import read_weight
from avl_export.quantize.spec import BITS, DEFAULT_BLOCK
from avl_plugins import cpu
from avl_plugins.bodies.function import linear_function
from avl_plugins.bodies.linear_ops import QUANTIZED_LINEARS
from avl_plugins.policies import parse
from avl_plugins.schema import DOMAIN, VERSION
from avl_runtime import LVLM
from avl_runtime.evaluate.measure import forced_logits
from avl_runtime.execute.host.ort_options import session_config
from avl_runtime.package.package import load_package
from avl_runtime.package.quantization import Quantization
from avl_runtime.prompts.processor import Processor
from avl_runtime.tasks import TASKS, samples
from avl_runtime.tasks.metrics import score
from avl_runtime.tasks.sample import Task

Answers = list[tuple[np.ndarray, np.ndarray]]
ALL = ("embedding", "lm_head", "vision")
BATCH = 20
RUNS = 200
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


def make(folder: Path, variant: dict[str, Any]) -> tuple[Path, Plan]:
    """Export avl-tiny; returns the package and its plan."""
    out = folder / "-".join(str(value) for value in variant.values()).replace("'", "")
    plan = make_plan(Options("avl-tiny", out, check=False, **variant))
    export(plan)
    return out, plan


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
            logits = forced_logits(model.loaded, prompt, parse("dense"), tuple(answer))
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


def linear_ms(quantize: str) -> float:
    """Milliseconds of one row through a linear, the least of many runs."""
    rng, side = np.random.default_rng(0), 4096
    weights = rng.standard_normal((side, side), np.float32)
    entry, tensors, functions = None, [numpy_helper.from_array(weights, "w")], []
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    if quantize != "none":
        bits = BITS[quantize]
        block = DEFAULT_BLOCK if bits == 4 else None
        codes, scales = quantize_rows(weights, bits, block or side, "rtn")
        stored, scales = (pack_int4(codes.T), scales.T) if bits == 4 else (codes.T, scales[:, 0])
        kind = TensorProto.INT4 if bits == 4 else TensorProto.INT8
        tensors = [
            helper.make_tensor("q", kind, codes.T.shape, stored.tobytes(), raw=True),
            numpy_helper.from_array(np.ascontiguousarray(scales), "s"),
        ]
        op = QUANTIZED_LINEARS[1, False]
        form: dict[str, Any] = {"axis": 0 if block else 1, "block_size": block or 0}
        node = helper.make_node(op.name, ["x", "q", "s"], ["y"], domain=op.domain, **form)
        functions = [linear_function(op)]
        entry = Quantization("rtn", bits, block, ("decoder",), False, None)
    rows = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", side]) for n in "xy"]
    graph = helper.make_graph([node], "linear", rows[:1], rows[1:], tensors)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    for name, value in session_config(entry, encoder=False, packs=True).items():
        options.add_session_config_entry(name, value)
    if (library := cpu.library()) is not None:
        options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {"x": rng.standard_normal((1, side), np.float32)}
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - begun)
    return round(1e3 * min(times), 3)


def input_products(plan: Plan, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each linear of the decoder's layers: W [outputs, inputs] and X X^T [inputs, inputs]."""
    model = plan.family.reference()
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    layers = plan.family.layers_of(model)
    linears = {id(m) for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Linear, inputs: tuple[torch.Tensor, ...], _: object) -> None:
            rows = inputs[0].detach().flatten(0, -2).double()
            weight, product = found.get(name, (module.weight.detach().double().numpy(), 0))
            found[name] = weight, product + (rows.T @ rows).numpy()

        return hook

    for name, module in model.named_modules():
        if id(module) in linears:
            module.register_forward_hook(note(f"{name}.weight"))
    processor = Processor.from_package(load_package(plan.options.out))
    with torch.no_grad():
        for task in TASKS:
            for sample in samples(task, "held-out", count, start=20_000):
                prompt = processor.encode(f"{sample.prompt} {sample.answer}", [sample.image])
                model(**plan.family.reference_inputs(prompt), use_cache=False)
    return found


def output_error(plan: Plan, products: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean relative error of the linears' outputs."""
    if plan.store is None:
        return 0.0
    errors = []
    for name, (weight, product) in products.items():
        change = read_weight(plan.options.out, plan.store.linears[name]) - weight
        errors.append(math.sqrt(energy(change, product) / energy(weight, product)))
    return round(float(np.mean(errors)), 5)


def energy(matrix: np.ndarray, product: np.ndarray) -> float:
    """|A X|^2 for X X^T."""
    return float(((matrix @ product) * matrix).sum())


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
        "| weights | perplexity | divergence | output error | caption F1 | vqa exact "
        "| ocr characters | decoder |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in report["variants"]:
        name = "the checkpoint's, in fp32"
        if one["method"] is not None:
            block = f"blocks of {one['block_size']}" if one["block_size"] else "one scale an output"
            also = ", everything" if len(one["parts"]) > 1 else ""
            name = f"int{one['bits']}, {one['method']}, {block}{also}"
        scores = " | ".join(f"{one['scores'][task]:.3f}" for task in TASKS)
        lines.append(
            f"| {name} | {one['perplexity']:.4f} | {one['divergence']:.2f} | "
            f"{one['output_error']:.2%} | {scores} | "
            f"{one['decoder_bytes'] / (1 << 20):.2f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=100, help="held-out samples a task")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, theirs, products = [], None, None
        for variant in VARIANTS:
            package, plan = make(Path(folder), variant)
            products = products or input_products(plan, args.samples // 10)
            found, ours = measure(package, args.samples, theirs)
            theirs = theirs or ours
            found["output_error"] = output_error(plan, products)
            rows.append(row(variant, plan.report(), found))
    report = {
        "model": "avl-tiny",
        "samples_per_task": args.samples,
        "machine": f"{platform.machine()}, {platform.system()}",
        "date": time.strftime("%Y-%m-%d"),
        "linear_ms": {kind: linear_ms(kind) for kind in ("none", "int8", "int4")},
        "variants": rows,
    }
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    else:
        print(json.dumps(report, indent=2))
    print(table(report), file=sys.stderr)


if __name__ == "__main__":
    main()

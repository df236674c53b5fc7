#!/usr/bin/env python
"""How far logits move by attention of prompts in bf16, and by linears that round activations.

    .venv/bin/python scripts/prompt_rounding.py --plain tiny.avl --json \
        benchmarks/prompt-rounding.json --quantized tiny-int4.avl tiny-int8.avl \
        tiny-int4-vision.avl tiny-int8-vision.avl

Logits of the first token of replies to held-out samples of avl-tiny's tasks, of one model exported
as it is and with quantized weights (`avl-export --quantize`, and with
`--quantize-also vision`). `attention in bf16` is the plain package so computed beside itself in
float32: nothing else rounds. The others are a quantized package beside its own weights
multiplied in float32 by ONNX Runtime's standard ops: `8 bits` as without AMX, with activations
rounded to 8 bits and attention in float32, and `default` as this machine runs it, with linears and
attention in bf16. An error is |l - l0| / |l0| of one prompt's logits l, less their means.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from avl_plugins import cpu
from avl_runtime import LVLM
from avl_runtime.bench.surroundings import machine
from avl_runtime.execute.host import ort_options
from avl_runtime.execute.host.compute import ATTENTION, LINEARS
from avl_runtime.tasks import TASKS, samples

SAMPLES = 50
OFF = {cpu.SWITCH: "off"}
WITHOUT_AMX = {cpu.AMX_SWITCH: "off"}


@contextmanager
def surroundings(switches: Mapping[str, str], exact: bool) -> Iterator[None]:
    """Switches of kernels, and MatMulNBits in float32 if all is to be exact."""
    before = ort_options.session_config

    def config(*arguments: Any) -> dict[str, str]:
        level = {"session.qdq_matmulnbits_accuracy_level": "1"} if exact else {}
        return before(*arguments) | level

    with (
        mock.patch.dict(os.environ, switches),
        mock.patch("avl_runtime.execute.host.ort.session_config", config),
    ):
        yield


def logits(
    package: Path, count: int, compute: str, switches: Mapping[str, str], exact: bool = False
) -> NDArray[np.float64]:
    """[prompts, vocabulary], less the mean of each prompt's."""
    with (
        surroundings(switches, exact),
        LVLM.load(package, backend="ort-cpu", policy="dense", compute=compute) as model,
    ):
        rows = []
        for sample in (one for task in TASKS for one in samples(task, "held-out", count)):
            result = model.generate(
                sample.prompt, [sample.image], max_new_tokens=1, return_logits=True
            )
            assert result.logits is not None
            rows.append(result.logits[0].astype(np.float64))
    found: NDArray[np.float64] = np.array(rows)
    found -= found.mean(axis=1, keepdims=True)
    return found


def error(found: NDArray[np.float64], exact: NDArray[np.float64]) -> dict[str, float]:
    """Median and greatest error of prompts, and in how many the likeliest token is the same."""
    each = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
    same = np.mean(found.argmax(axis=1) == exact.argmax(axis=1))
    return {
        "median": float(f"{np.median(each):.2e}"),
        "greatest": float(f"{each.max():.2e}"),
        "same_token": round(float(same), 4),
    }


def measure(plain: Path, quantized: Sequence[Path], count: int) -> dict[str, dict[str, float]]:
    """Errors by what rounds."""
    reference = logits(plain, count, "fp32", {})
    with mock.patch(
        "avl_runtime.execute.host.ort.compute_entries",
        lambda *_: {ATTENTION: "bf16", LINEARS: "fp32"},
    ):
        attention = logits(plain, count, "fp32", {})
    found = {
        "attention in bf16": error(attention, reference),
        "attention and linears in bf16": error(logits(plain, count, "bf16", {}), reference),
    }
    for package in quantized:
        exact = logits(package, count, "fp32", OFF, exact=True)
        for name, compute, switches in (
            ("8 bits", "fp32", WITHOUT_AMX),
            ("linears in bf16", "fp32", {}),
            ("default", "auto", {}),
        ):
            found[f"{package.stem}: {name}"] = error(
                logits(package, count, compute, switches), exact
            )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", type=Path, required=True, help="avl-tiny as it is")
    parser.add_argument("--quantized", type=Path, nargs="+", required=True, help="and quantized")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each task")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args(arguments)
    report = {
        "prompts": parsed.samples * len(TASKS),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "errors": measure(parsed.plain, parsed.quantized, parsed.samples),
    }
    for name, found in report["errors"].items():
        print(f"{name}: {found}")
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

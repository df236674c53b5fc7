#!/usr/bin/env python
"""Run the attention kernels over a wide sweep in Triton's interpreter, against float64.

    .venv/bin/python scripts/kernel_sweep.py --json benchmarks/kernels-sweep.json

Every form, type and head_dim with random batches of 1 to 16, ragged lengths (0 and whole tiles
among them), groups, owners, tile sizes, weightings and orders of programs. Needs no GPU; some
minutes. The tests run a covering few of such cases.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avl_plugins.kernels.catalog import DTYPES, HEAD_DIMS
from interpreter import interpreters, shuffled_programs
from kernel_cases import Attention, Errors, attend, attention_errors, triton_launch

FORMS = tuple(
    f"{kernel}_{form}"
    for kernel in ("fused", "restored")
    for form in ("decode", "decode_sliced", "prefill")
)
OUT, MASS = 2.0, 1e-6


def random_case(form: str, dtype: str, head_dim: int, seed: int) -> Attention:
    """A case of moderate size: what takes the interpreter about a second."""
    rng = random.Random(f"{form} {dtype} {head_dim} {seed}")
    few = not form.endswith("prefill")
    batch = rng.choice((1, 1, 2, 3, 8, 16) if few else (1, 1, 2))
    kv_heads = rng.choice((1, 2) if batch < 8 else (1,))
    group = rng.choice((1, 1, 2, 4, 7, 8, 16) if few else (1, 1, 2, 4, 7))
    new = rng.choice((1, 1, 1, 2, 3, 5)) if few else rng.choice((1, 7, 31, 64, 65, 100))
    largest = 300 if batch < 8 else 70
    active, parked = rng.choice((1, 32, 64, largest)), rng.choice((1, 33, largest // 2))

    def lengths(capacity: int) -> tuple[int, ...]:
        some = (0, 1, capacity, capacity // 2, min(32, capacity), min(64, capacity))
        return tuple(rng.choice((*some, rng.randint(0, capacity))) for _ in range(batch))

    tiles: dict[str, int] = {}
    if rng.random() < 0.3:
        tiles["BN"] = rng.choice((16, 32, 64))
    if rng.random() < 0.2 and not few:
        tiles["BM"] = rng.choice((16, 32, 128))
    return Attention(
        form,
        dtype,
        head_dim,
        kv_heads,
        group,
        new,
        active,
        parked,
        lengths(active),
        lengths(parked),
        weightings=rng.choice((1, 2, 2, 3)),
        weighted=rng.choice((None, None, (), (new - 1,), (0, new - 1))),
        owners=rng.choice((1, 1, 2, 3)),
        constants=tiles,
        seed=seed,
        axes=rng.choice((1, 2, 3)),
        unlike=rng.choice((False, True)),
    )


def measure(case: Attention, order: int | None) -> Errors:
    inputs = case.inputs()
    with shuffled_programs(order):
        outputs = attend(case, triton_launch, inputs)
    return attention_errors(case, inputs, outputs)


def summary(results: list[tuple[Attention, Errors]]) -> dict[str, Any]:
    """Cases and largest errors of each form and type."""
    grouped: dict[str, list[Errors]] = defaultdict(list)
    for case, errors in results:
        grouped[f"{case.form} {case.dtype}"].append(errors)
    return {
        name: {
            "cases": len(errors),
            "out_error_over_rounding": round(max(one.out for one in errors), 3),
            "mass_error": float(f"{max(one.mass for one in errors):.2g}"),
        }
        for name, errors in grouped.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=14, help="cases of each form, type, head_dim")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cases = [
        random_case(form, dtype, head_dim, seed)
        for form in FORMS
        for dtype in DTYPES
        for head_dim in HEAD_DIMS
        for seed in range(args.seeds)
    ]
    with interpreters(args.jobs) as pool:
        orders = [i if i % 2 else None for i in range(len(cases))]
        tasks = [pool.submit(measure, *one) for one in zip(cases, orders, strict=True)]
        results = []
        for case, task in zip(cases, tasks, strict=True):
            results.append((case, task.result()))
            print(f"{len(results)}/{len(cases)}", file=sys.stderr, end="\r")
    for case, errors in results:
        if not (errors.out <= OUT and errors.mass <= MASS):
            print(f"over: {errors} {asdict(case)}")
    report = {"limits": {"out": OUT, "mass": MASS}, "results": summary(results)}
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if any(errors.out > OUT or errors.mass > MASS for _, errors in results):
        sys.exit("error: some errors are over the limits")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Check and time every kernel on a GPU, through Triton and through the packaged PTX.

    python scripts/gpu_check.py --json benchmarks/kernels-gpu.json

Needs a GPU, torch, triton, numpy and cuda-python, and neither an installation of avl nor network
access. Correctness against float64 on fresh inputs with poisoned outputs and caches, 1000 launches
that must agree in every bit, compute-sanitizer where there is one, then speed as ratios within one
run (`gpu_speed.py`). Ends with 1 if a result is wrong; speeds that fall short are listed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent / "plugins")]

import torch  # noqa: E402  # the paths above come first

from avl_plugins.cuda import Device  # noqa: E402
from avl_plugins.kernels.catalog import DTYPES, HEAD_DIMS, Variant  # noqa: E402
from gpu_speed import measure_speed, tune  # noqa: E402
from kernel_cases import (  # noqa: E402
    Attention,
    Launch,
    attend,
    attention_errors,
    triton_launch,
)
from kernel_moves import selection_with_ties, update_in_place, update_into_copies  # noqa: E402
from kernel_sequences import refreshes, text_steps  # noqa: E402
from kernel_sweep import FORMS, MASS, OUT, random_case  # noqa: E402

REPEATS = 1000
DEVICE = "cuda"


class PtxLaunch:
    """Launches the packaged PTX with cuLaunchKernel on torch's current stream."""

    def __init__(self) -> None:
        torch.cuda.init()
        self.device = Device(torch.cuda.current_device())

    def __call__(self, variant: Variant, values: Mapping[str, Any]) -> None:
        plain = {
            name: value.data_ptr() if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }
        self.device.launch(variant.name, plain, torch.cuda.current_stream().cuda_stream)


def large_cases() -> list[Attention]:
    """Sizes as in use: one image of LLaVA-NeXT, MHA and GQA."""
    made = []
    for dtype, (kv_heads, group) in itertools.product(DTYPES, ((8, 1), (2, 8))):
        shape = (dtype, 128, kv_heads, group)
        made += [
            Attention(form, *shape, 1, 3040, 448, (3040, 17), (448, 0), splits=16)
            for form in ("decode", "fused_decode", "fused_decode_sliced")
        ]
        text = (*range(35), *range(640, 700))
        made += [
            Attention(form, *shape, 700, 900, 64, (900,), (33,), weighted=text)
            for form in ("prefill", "fused_prefill")
        ]
    return made


def check_attention(launch: Launch, cases: list[Attention]) -> dict[str, Any]:
    """Largest errors of each form and type, and the cases that are over the limits."""
    worst: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    failed = []
    for case in cases:
        inputs = case.inputs(DEVICE)
        errors = attention_errors(case, inputs, attend(case, launch, inputs))
        row = worst[f"{case.form} {case.dtype}"]
        row[0], row[1], row[2] = row[0] + 1, max(row[1], errors.out), max(row[2], errors.mass)
        if not (errors.out <= OUT and errors.mass <= MASS):
            failed.append(f"{errors} {case}")
    names = ("cases", "out_error_over_rounding", "mass_error")
    return {
        "worst": {name: dict(zip(names, row, strict=True)) for name, row in worst.items()},
        "failed": failed,
    }


def check_moves(launch: Launch) -> list[str]:
    """What `update` and the selections get wrong."""
    failed = []
    for seed in range(20):
        failed += [
            f"update: seed {seed}, {moves} moves"
            for moves in (1, 64, 100, 1200, 4000)
            if not update_in_place(launch, DEVICE, seed, 2, 2, 128, moves)
        ]
        if not update_into_copies(launch, DEVICE, seed, 2, 2, 80, 300):
            failed.append(f"update_copy: seed {seed}")
        failed += [
            f"select_core: seed {seed}, {core} and {parked} rows"
            for core, parked, rows in ((20, 30, 1024), (500, 524, 1024), (600, 900, 4096))
            if not selection_with_ties(launch, DEVICE, seed, core, parked, rows)
        ]
        failed += [f"refreshes: {one}" for one in refreshes(launch, DEVICE, seed, 8)]
        failed += [f"text: {one}" for one in text_steps(launch, DEVICE, seed, 20, 0.5)]
    return failed


def check_stability(launch: Launch) -> list[str]:
    """Forms whose repeated launches differ in any bit."""
    failed = []
    for form in FORMS:
        new = 130 if "prefill" in form else 1
        case = Attention(
            form, "bfloat16", 128, 4, 4, new, 700, 300, (700, 33), (300, 0), splits=7, owners=2
        )
        inputs = case.inputs(DEVICE)
        first = attend(case, launch, inputs)
        for _ in range(REPEATS - 1):
            again = attend(case, launch, inputs)
            if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
                failed.append(form)
                break
    return failed


def small_cases() -> list[Attention]:
    """One of each form and type, for the sanitizer."""
    return [random_case(form, dtype, 128, 1) for form in FORMS for dtype in DTYPES]


def without_tiles(cases: list[Attention]) -> list[Attention]:
    """Cases that packaged PTX can run, whose tiles are fixed."""
    return [case for case in cases if not case.constants]


def sanitize() -> dict[str, str]:
    """What compute-sanitizer says of a small run of everything, by tool."""
    found = shutil.which("compute-sanitizer")
    if found is None:
        return {"not run": "compute-sanitizer is not on the PATH"}
    said = {}
    for tool in ("memcheck", "racecheck"):
        command = [found, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__]
        done = subprocess.run(
            [*command, "--small"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        clean = done.returncode == 0
        said[tool] = "clean" if clean else (done.stdout + done.stderr)[-2000:]
    return said


def run_small() -> None:
    """What the sanitizer watches."""
    for launch in (triton_launch, PtxLaunch()):
        check_attention(launch, without_tiles(small_cases()))
        update_in_place(launch, DEVICE, 0, 2, 2, 128, 100)
        update_into_copies(launch, DEVICE, 0, 2, 2, 80, 300)
        refreshes(launch, DEVICE, 0, 2)
        text_steps(launch, DEVICE, 0, 3, 0.5)


def environment(device: Device) -> dict[str, str]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": str(device.capability),
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "triton", "numpy", "cuda-bindings")},
    }


def table(report: dict[str, Any]) -> str:
    """The report in short."""
    lines = [f"{name}: {value}" for name, value in report["environment"].items()]
    for way, found in report["correctness"].items():
        lines += [
            f"{way:7s} {name:30s} {row['cases']:4.0f} cases  out "
            f"{row['out_error_over_rounding']:.2f} x rounding  mass {row['mass_error']:.1e}"
            for name, row in found["worst"].items()
        ]
        wrong = found["failed"] + found["moves"] + found["unstable"]
        lines.append(f"{way:7s} {'wrong: ' + str(len(wrong)) if wrong else 'all right'}")
    lines += [f"sanitizer {tool}: {said}" for tool, said in report["sanitizer"].items()]
    for row in report["speed"]:
        mark = "" if row["met"] is None else ("met" if row["met"] else "SHORT")
        wanted = f"{row['wanted']:>9s}" if row["wanted"] else " " * 9
        lines.append(f"{row['name']:62s} {row['value']:9.3f} {row['unit']:6s} {wanted} {mark}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=6, help="cases of each form, type, head_dim")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--tune", action="store_true", help="also time other tile sizes")
    parser.add_argument("--small", action="store_true", help="run a little of everything once")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: expected a GPU that torch can use, found none; run this on a GPU machine")
    if args.small:
        run_small()
        return
    packaged = PtxLaunch()
    cases = [
        random_case(form, dtype, head_dim, seed)
        for form in FORMS
        for dtype in DTYPES
        for head_dim in HEAD_DIMS
        for seed in range(args.seeds)
    ] + large_cases()
    report: dict[str, Any] = {"environment": environment(packaged.device), "correctness": {}}
    for way, launch in (("triton", triton_launch), ("ptx", packaged)):
        found = check_attention(launch, cases if way == "triton" else without_tiles(cases))
        found |= {"moves": check_moves(launch), "unstable": check_stability(launch)}
        report["correctness"][way] = found
        print(f"{way}: checked", file=sys.stderr)
    report["sanitizer"] = sanitize()
    report["speed"] = [] if args.no_speed else measure_speed(packaged)
    report["tuning"] = tune() if args.tune else []
    print(table(report))
    for row in report["tuning"]:
        print(row)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if any(f["failed"] or f["moves"] or f["unstable"] for f in report["correctness"].values()):
        sys.exit("error: some results are wrong")


if __name__ == "__main__":
    main()

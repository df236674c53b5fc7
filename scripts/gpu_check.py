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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent / "plugins")]

import torch  # noqa: E402  # the paths above come first

from avl_plugins.cuda.driver import Device  # noqa: E402
from avl_plugins.kernels.catalog import DTYPES, HEAD_DIMS, Variant  # noqa: E402
from gpu_speed import measure_speed, tune  # noqa: E402
from kernel_cases import (  # noqa: E402
    Attention,
    Launch,
    attend,
    attention_errors,
    triton_launch,
)
from kernel_moves import (  # noqa: E402
    selection_with_ties,
    text_evictions,
    update_in_place,
)
from kernel_sequences import refreshes, text_steps  # noqa: E402
from kernel_sweep import FORMS, MASS, OUT, random_case  # noqa: E402

DEVICE = "cuda"

# Checks of the moves and selections, with their sizes.
MOVED: list[tuple[Callable[..., bool], tuple[int, ...]]] = [
    *((update_in_place, (2, 2, 128, moves)) for moves in (1, 64, 100, 1200, 4000)),
    *(
        (selection_with_ties, sizes)  # core, parked and ranked rows
        for sizes in ((20, 30, 1024), (500, 524, 1024), (600, 900, 4096))
    ),
    (text_evictions, (300,)),
]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is checked.

    Attributes:
        seeds: random cases of each form, type and head_dim.
        moves: random cases of each check of the moves and selections.
        steps: decode steps of each sequence of them.
        repeats: launches that must agree in every bit.
    """

    seeds: int = 6
    moves: int = 20
    steps: int = 20
    repeats: int = 1000


SMALL = Effort(seeds=1, moves=1, steps=2, repeats=2)  # what the sanitizer has time to watch


class PtxLaunch:
    """Launches the packaged PTX with cuLaunchKernel on torch's current stream."""

    def __init__(self) -> None:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's own
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
            Attention(form, *shape, 1, 3040, 448, (3040, 17), (448, 0))
            for form in ("fused_decode", "fused_decode_sliced")
        ]
        made.append(
            Attention("restored_decode", *shape, 1, 3040, 448, (3040, 17), (448, 0), axes=3)
        )
        text = (*range(35), *range(640, 700))
        made.append(Attention("fused_prefill", *shape, 700, 900, 64, (900,), (33,), weighted=text))
    return made


def attempted(check: Callable[[], list[str]], name: str) -> list[str]:
    """What a check finds wrong; an error is one more finding, and other checks go on."""
    try:
        return check()
    except Exception as error:
        return [f"{name}: {type(error).__name__}: {str(error)[:200]}"]


def named(name: str, right: Callable[[], bool]) -> list[str]:
    """The name of a check unless it is right."""
    return [] if right() else [name]


def check_attention(launch: Launch, cases: list[Attention]) -> dict[str, Any]:
    """Largest errors of each form and type, and the cases that are over the limits."""
    worst: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def check(case: Attention) -> list[str]:
        inputs = case.inputs(DEVICE)
        errors = attention_errors(case, inputs, attend(case, launch, inputs))
        row = worst[f"{case.form} {case.dtype}"]
        row[0], row[1], row[2] = row[0] + 1, max(row[1], errors.out), max(row[2], errors.mass)
        return [] if errors.out <= OUT and errors.mass <= MASS else [f"{errors} {case}"]

    failed = [one for case in cases for one in attempted(partial(check, case), str(case))]
    names = ("cases", "out_error_over_rounding", "mass_error")
    found = {name: dict(zip(names, row, strict=True)) for name, row in worst.items()}
    return {"worst": found, "failed": failed}


def check_moves(launch: Launch, effort: Effort) -> list[str]:
    """What `update` and the selections get wrong."""
    failed = []
    for seed in range(effort.moves):
        for check, sizes in MOVED:
            name = f"{check.__name__}: seed {seed}, {sizes}"
            right = partial(check, launch, DEVICE, seed, *sizes)
            failed += attempted(partial(named, name, right), name)
        for several, options in ((refreshes, ()), (text_steps, (0.5,))):
            steps = partial(several, launch, DEVICE, seed, effort.steps, *options)
            failed += attempted(steps, several.__name__)
    return failed


def check_stability(launch: Launch, effort: Effort) -> list[str]:
    """Forms whose repeated launches differ in any bit."""

    def check(form: str) -> list[str]:
        new = 130 if "prefill" in form else 1
        case = Attention(form, "bfloat16", 128, 4, 4, new, 700, 300, (700, 33), (300, 0), owners=2)
        inputs = case.inputs(DEVICE)
        first = attend(case, launch, inputs)
        for _ in range(effort.repeats - 1):
            again = attend(case, launch, inputs)
            if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
                return [form]
        return []

    return [one for form in FORMS for one in attempted(partial(check, form), form)]


def random_cases(effort: Effort) -> list[Attention]:
    """As many of each form, type and head_dim."""
    return [
        random_case(form, dtype, head_dim, seed)
        for form in FORMS
        for dtype in DTYPES
        for head_dim in HEAD_DIMS
        for seed in range(effort.seeds)
    ]


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


def wrong(correctness: Mapping[str, Any]) -> bool:
    """Whether any way of launching got anything wrong."""
    return any(one["failed"] or one["moves"] or one["unstable"] for one in correctness.values())


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
    lines += [str(row) for row in report["tuning"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=6, help="cases of each form, type, head_dim")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--tune", action="store_true", help="also time other tile sizes")
    parser.add_argument("--small", action="store_true", help="run a little of everything once")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("error: expected a GPU that torch can use, found none; run this on a GPU machine")
    packaged = PtxLaunch()
    effort = SMALL if args.small else Effort(seeds=args.seeds)
    cases = random_cases(effort)
    cases = without_tiles(cases) if args.small else cases + large_cases()
    report: dict[str, Any] = {"environment": environment(packaged.device), "correctness": {}}
    report |= {"sanitizer": {}, "speed": [], "tuning": []}

    def save() -> None:
        """After every part: what has been measured is kept if a later part does not end."""
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")

    for way, launch, own in (
        ("triton", triton_launch, cases),
        ("ptx", packaged, without_tiles(cases)),
    ):
        found = check_attention(launch, own)
        found |= {"moves": check_moves(launch, effort), "unstable": check_stability(launch, effort)}
        report["correctness"][way] = found
        print(f"{way}: checked", file=sys.stderr)
        save()
    if not args.small:
        report["sanitizer"] = sanitize()
        save()
    if not (args.small or args.no_speed):
        report["speed"] = measure_speed(packaged)
        save()
    if args.tune:
        report["tuning"] = tune()
        save()
    print(table(report))
    if wrong(report["correctness"]):
        sys.exit("error: some results are wrong")


if __name__ == "__main__":
    main()

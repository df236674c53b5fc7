"""Every level of instructions that the kernel of prompts is compiled for, without ONNX Runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avl_plugins.cpu import build
from ops.agreement import assert_agrees
from ops.op_models import Arrays
from ops.test_cpu_levels import OUTPUTS, Step
from ops.test_prompt_kernel import prompt_inputs
from support.compiled import compiled, require

_COUNTS = ("group", "parts", "blocks", "block", "spans", "span", "mass_spans", "mass_span")
_SIZES = ("workers", "room", "keys")
_MEMORY = ("wanted", "wanted_rows", "tops", "sums", "span_tops", "span_sums", "span_out", "scores")


class Prompt(ctypes.Structure):
    """avl_prompt of prompt.h."""

    _fields_ = [
        ("step", ctypes.POINTER(Step)),
        *((name, ctypes.c_int64) for name in _COUNTS),
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in ("rooms", *_MEMORY, "memory")),
    ]


class Kernels(ctypes.Structure):
    """avl_prompt_kernels of prompt.h."""

    _fields_ = [
        (name, ctypes.CFUNCTYPE(None, ctypes.POINTER(Prompt), ctypes.c_int64, ctypes.c_void_p))
        for name in ("attend", "merge", "find_sums", "merge_sums", "sum_masses")
    ]


class Tiles(ctypes.Structure):
    """avl_prompt_tiles of prompt.h."""

    _fields_ = [
        ("attend", ctypes.c_void_p),
        ("room", ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)),
    ] + [(name, ctypes.c_int64) for name in ("block", "rows", "side", "most")]


TILES = Tiles(None, Tiles._fields_[1][1](lambda *_: 16), 1024, 32, 1, 1 << 30)


@dataclass(frozen=True)
class Level:
    """A level's kernels, and what plans their tasks."""

    kernels: Kernels
    plan: Callable[..., int]
    free: Callable[..., None]


@pytest.fixture(params=("avl_prompt_base", *build.PROMPT_LEVELS))
def level(request: pytest.FixtureRequest, tmp_path: Path, kernels: Path) -> Level:
    """A level that this processor has."""
    options = build.PROMPT_LEVELS.get(request.param, ())
    require(options)
    library = compiled(build.PROMPT, tmp_path, f"-DAVL_LEVEL={request.param}", *options)
    plan = compiled("prompt_plan.c", tmp_path)
    free = ctypes.CDLL(None).free
    free.restype, free.argtypes = None, (ctypes.c_void_p,)
    return Level(Kernels.in_dll(library, request.param), plan.avl_plan_prompt, free)


def ran(
    level: Level, arrays: Arrays, on_tiles: bool = False
) -> tuple[list[np.ndarray[Any, Any]], Prompt]:
    """Outputs of a prompt, its tasks in backward order; and how it was planned.

    Where the first stage would be on tiles, there is none, and sums are found for masses alone.
    """
    (b, h, s, d), (_, kv, a, _) = arrays["q"].shape, arrays["k_active"].shape
    p, r = arrays["k_parked"].shape[2], arrays["row_weights"].shape[1]
    shapes = ((b, h, s, d), (b, kv, r, a), (b, kv, r, p), (b, kv, r, s))
    outputs = [np.full(shapes[0], np.nan, np.float32)]
    outputs += [np.zeros(shape, np.float32) for shape in shapes[1:]]
    step = Step(*(b, h, kv, s, d, a, p, r), d**-0.5)
    for name, array in {**arrays, **dict(zip(OUTPUTS, outputs, strict=True))}.items():
        setattr(step, name, array.ctypes.data)
    prompt = Prompt()
    at = ctypes.byref(prompt)
    assert level.plan(ctypes.byref(step), ctypes.byref(TILES) if on_tiles else None, at)
    kernels, mass_tasks = level.kernels, prompt.parts * prompt.mass_spans
    stages = [
        (kernels.attend, prompt.parts * prompt.blocks * prompt.spans),
        (kernels.merge, prompt.parts if prompt.spans > 1 else 0),
    ]
    if on_tiles:
        stages = [(kernels.find_sums, mass_tasks), (kernels.merge_sums, prompt.parts)]
    for stage, count in (*stages, (kernels.sum_masses, mass_tasks)):
        for index in reversed(range(count)):
            stage(at, index, prompt.rooms)
    level.free(prompt.memory)
    return outputs, prompt


def test_a_level_agrees_with_the_reference(level: Level) -> None:
    numbers = np.random.default_rng(5)
    spans, blocks, kept = set(), set(), set()
    for case in range(30):
        batch, kv = (int(numbers.integers(1, 3)) for _ in range(2))
        sizes = {"B": batch, "Hkv": kv, "H": kv * int(numbers.integers(1, 5))}
        sizes |= {"S": int(numbers.integers(1, 21 if case % 2 else 270)), "R": 1 + case % 2}
        sizes["D"] = int(numbers.choice((5, 16, 24, 64, 80, 128)))
        lengths = {}
        for place in ("active", "parked"):
            capacity = int(numbers.integers(1, 1300 if case % 2 else 150))
            lengths[place] = [int(numbers.integers(0, capacity + 1)) for _ in range(batch)]
            sizes[place[0].upper()] = capacity
        arrays = prompt_inputs(sizes, lengths, (0.0, 0.1, 1.0)[case % 3], case)
        found, prompt = ran(level, arrays)
        assert_agrees(arrays, found)
        masses, _ = ran(level, arrays, on_tiles=True)
        assert_agrees(arrays, [found[0], *masses[1:]])
        spans.add(prompt.spans)
        kept.add(prompt.scores is not None)
        blocks.add(prompt.blocks)
    assert spans > {1}
    assert blocks > {1}
    assert kept == {True, False}

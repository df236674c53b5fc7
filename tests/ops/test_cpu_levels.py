"""Every level of instructions that the CPU kernel is compiled for, called without ONNX Runtime."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avl_plugins.cpu import build
from ops.agreement import expected
from ops.op_models import Arrays
from support.compiled import compiled, require

SIZES = ("batch", "heads", "kv_heads", "rows", "head_dim", "active", "parked", "weightings")
INPUTS = ("q", "k_new", "v_new", "k_active", "v_active", "k_parked", "v_parked", "row_weights")
LENGTHS = ("active_len", "parked_len")
OUTPUTS = ("out", "mass_active", "mass_parked", "mass_new")
REST = ("scratch", "codes")
BIASES = ("bias_active", "bias_parked", "bias_new")


class Step(ctypes.Structure):
    """avl_step of attention.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in SIZES),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in (*INPUTS, *BIASES)),
        ("unlike", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in (*LENGTHS, *OUTPUTS, *REST)),
        ("mutual", ctypes.c_int64),
    ]


class Kernels(ctypes.Structure):
    """avl_step_kernels of attention.h."""

    _fields_ = [
        ("scratch", ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(Step))),
        ("chunks", ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(Step))),
        *(
            (name, ctypes.CFUNCTYPE(None, ctypes.POINTER(Step), ctypes.c_int64))
            for name in ("score_keys", "sum_values", "sum_masses", "merge")
        ),
        (
            "swap_rows",
            ctypes.CFUNCTYPE(
                None, *[ctypes.c_void_p] * 2, ctypes.c_int64, *[ctypes.c_void_p] * 2, ctypes.c_int64
            ),
        ),
    ]


def ran(kernels: Kernels, arrays: Arrays, codes: int | None = None) -> list[np.ndarray[Any, Any]]:
    """Outputs of a step, its parts in backward order; `codes` is the address of an avl_codes."""
    (b, h, _, d), (_, kv, a, _) = arrays["q"].shape, arrays["k_active"].shape
    p, r = arrays["k_parked"].shape[2], arrays["row_weights"].shape[1]
    shapes = ((b, h, 1, d), (b, kv, r, a), (b, kv, r, p), (b, kv, r, 1))
    outputs = {
        name: np.full(s, np.nan, np.float32) for name, s in zip(OUTPUTS, shapes, strict=True)
    }
    step = Step(*(b, h, kv, 1, d, a, p, r), d**-0.5)
    for name, array in {**arrays, **outputs}.items():
        setattr(step, name, array.ctypes.data)
    step.codes = codes
    at = ctypes.byref(step)
    scratch = np.full(kernels.scratch(at), np.nan, np.float32)
    step.scratch = scratch.ctypes.data
    for stage, count in (
        (kernels.score_keys, kernels.chunks(at)),
        (kernels.sum_masses, b * kv if r else 0),
        (kernels.sum_values, kernels.chunks(at)),
        (kernels.merge, b * kv),
    ):
        for index in reversed(range(count)):
            stage(at, index)
    return list(outputs.values())


@pytest.fixture(params=("avl_step_base", *build.LEVELS))
def functions(request: pytest.FixtureRequest, tmp_path: Path, kernels: Path) -> Kernels:
    """A level that this processor has."""
    options = build.LEVELS.get(request.param, ())
    require(options)
    library = compiled(build.KERNELS, tmp_path, f"-DAVL_LEVEL={request.param}", *options)
    return Kernels.in_dll(library, request.param)


def test_a_level_agrees_with_the_reference(functions: Kernels) -> None:
    numbers = np.random.default_rng(5)
    for case in range(40):
        group, kv, batch = (int(numbers.integers(1, end)) for end in (8, 3, 3))
        width = int(numbers.choice((5, 16, 64, 80, 128)))
        rows = {place: int(numbers.integers(1, 1300 if case % 2 else 30)) for place in "ap"}
        shapes = {"q": (group * kv, 1), "k_new": (kv, 1), "v_new": (kv, 1)}
        shapes |= {"k_active": (kv, rows["a"]), "v_active": (kv, rows["a"])}
        shapes |= {"k_parked": (kv, rows["p"]), "v_parked": (kv, rows["p"])}
        arrays: Arrays = {
            name: numbers.standard_normal((batch, *shape, width), np.float32)
            for name, shape in shapes.items()
        }
        arrays["row_weights"] = numbers.random((batch, case % 3, 1), np.float32)
        arrays["active_len"] = numbers.integers(0, rows["a"] + 1, batch)
        arrays["parked_len"] = numbers.integers(0, rows["p"] + 1, batch)
        found = ran(functions, arrays)
        if not case % 3:  # the reference wants a weighting
            arrays["row_weights"] = np.ones((batch, 1, 1), np.float32)
        for output, wanted in zip(found, expected(arrays), strict=True):
            if case % 3 or output.shape == wanted.shape:
                np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-5)


def test_a_level_swaps_rows(functions: Kernels) -> None:
    numbers = np.random.default_rng(6)
    for width in (1, 5, 16, 80, 128):
        active, parked = (numbers.random((count, width), np.float32) for count in (40, 30))
        slots = [numbers.permutation(count)[:20].astype(np.int64) for count in (40, 30)]
        wanted = active.copy(), parked.copy()
        wanted[0][slots[0]], wanted[1][slots[1]] = parked[slots[1]], active[slots[0]]
        at = [array.ctypes.data for array in (active, parked, *slots)]
        functions.swap_rows(*at[:2], width * active.itemsize, *at[2:], 20)
        np.testing.assert_array_equal(active, wanted[0])
        np.testing.assert_array_equal(parked, wanted[1])

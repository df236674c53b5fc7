"""The kernel for few rows, as drafts have that are checked, on every level of instructions."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avl_plugins import reference
from avl_plugins.cpu import build
from ops.op_models import Arrays
from ops.test_cpu_levels import OUTPUTS, Step
from ops.test_prompt_kernel import prompt_inputs
from ops.test_quantized_cache import Codes, coded_inputs
from support.compiled import compiled, require

ARCH_PRCTL, ASK, TILES = 158, 0x1023, 18  # of Linux on x86-64; ARCH_REQ_XCOMP_PERM, XTILEDATA
ROOM = 64  # bytes at a multiple of which rooms begin
ORDER = (
    *("q", "k_new", "v_new", "k_active", "v_active", "active_len"),
    *("k_parked", "v_parked", "parked_len", "row_weights"),
)


class Kernels(ctypes.Structure):
    """avl_few_kernels of few.h."""

    _fields_ = [
        *(
            (name, ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(Step)))
            for name in ("scratch", "chunks")
        ),
        *(
            (
                name,
                ctypes.CFUNCTYPE(None, ctypes.POINTER(Step), ctypes.c_int64, ctypes.c_void_p),
            )
            for name in ("prepare", "score_keys", "sum_values", "sum_masses", "merge")
        ),
    ]


@pytest.fixture(params=("avl_few_base", *build.FEW_LEVELS), scope="module")
def few(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kernels: Path
) -> Kernels:
    """A level that this processor has."""
    options = build.FEW_LEVELS.get(request.param, ())
    require(options)
    if "-mamx-tile" in options and ctypes.CDLL(None).syscall(ARCH_PRCTL, ASK, TILES):
        pytest.skip("the kernel does not let this process use AMX")
    flags = (*build.IN_ORDER[build.FEW], f"-DAVL_LEVEL={request.param}", *options, "-lm")
    library = compiled(build.FEW, tmp_path_factory.mktemp("few"), *flags)
    return Kernels.in_dll(library, request.param)


def ran(few: Kernels, arrays: Arrays) -> list[np.ndarray[Any, Any]]:
    """Outputs of few rows, parts and chunks backward; rows are codes where they have scales."""
    (b, h, s, d), (_, kv, a, _) = arrays["q"].shape, arrays["k_active"].shape
    p, r = arrays["k_parked"].shape[2], arrays["row_weights"].shape[1]
    shapes = ((b, h, s, d), (b, kv, r, a), (b, kv, r, p), (b, kv, r, s))
    outputs = {n: np.full(of, np.nan, np.float32) for n, of in zip(OUTPUTS, shapes, strict=True)}
    step, codes = Step(*(b, h, kv, s, d, a, p, r), d**-0.5), Codes(bits=8)
    held = {name: np.ascontiguousarray(array) for name, array in {**arrays, **outputs}.items()}
    coded = "k_active_scale" in arrays
    for name, array in held.items():
        in_codes = coded and name[:2] in ("k_", "v_")
        setattr(codes if in_codes else step, name, array.ctypes.data)
    step.codes = ctypes.addressof(codes) if coded else None
    at = ctypes.byref(step)
    room, chunks = few.scratch(at), few.chunks(at)
    memory = np.full(b * kv * room + ROOM, np.nan, np.float32)
    first = memory.ctypes.data + -memory.ctypes.data % ROOM

    def each(stage: Any, count: int) -> None:
        for index in reversed(range(b * kv * count)):
            stage(at, index, first + index // count * room * memory.itemsize)

    for stage, count in ((few.prepare, 1), (few.score_keys, chunks), (few.sum_values, chunks)):
        each(stage, count)
    if r:
        each(few.sum_masses, 1)
    each(few.merge, 1)
    return [held[name] for name in OUTPUTS]


def drawn(
    numbers: np.random.Generator, rows: int, width: int, cached: tuple[int, int], coded: bool
) -> Arrays:
    active, parked = cached
    batch, kv, group = (int(numbers.integers(1, 4)) for _ in range(3))
    sizes = {"B": batch, "Hkv": kv, "H": kv * group, "S": rows, "D": width, "R": 2}
    sizes |= {"A": active + 3, "P": parked + 1}
    lengths = {"active": [active, 0, active // 2][:batch], "parked": [parked, 1, 0][:batch]}
    arrays = prompt_inputs(sizes, lengths, 0.7, int(numbers.integers(1 << 30)))
    if coded:
        arrays = coded_inputs(arrays)
        for name in ("k_new", "v_new"):
            arrays[name], arrays[f"{name}_scale"] = reference.coded(arrays[name].astype(np.float64))
    return arrays


@pytest.mark.parametrize("coded", [False, True])
def test_a_level_agrees_with_the_reference(few: Kernels, coded: bool) -> None:
    numbers = np.random.default_rng(5)
    for case in range(24):
        width = (5, 16, 64, 72, 128, 256, 264)[case % 7]
        cached = ((1000, 1100), (20, 0), (3, 40))[case % 3]
        arrays = drawn(numbers, (2, 3, 7, 16)[case % 4], width, cached, coded)
        whole = dict(arrays)
        for name in [name for name in arrays if f"{name}_scale" in arrays]:
            whole[name] = reference.decoded(arrays[name], arrays[f"{name}_scale"])
        wanted = reference.split_cache_attention(*(whole[n] for n in ORDER), scale=width**-0.5)
        for found, right in zip(ran(few, arrays), wanted, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("coded", [False, True])
def test_a_rows_result_does_not_depend_on_how_many_there_are(few: Kernels, coded: bool) -> None:
    """To the last bit: two of them, those before which are cached, give the same as all at once."""
    numbers = np.random.default_rng(6)
    for rows, active, width in ((16, 2040, 64), (9, 1020, 72), (5, 30, 128)):
        arrays = drawn(numbers, rows, width, (active, 0), coded)
        arrays["active_len"][:], arrays["parked_len"][:] = active, 0
        together = ran(few, arrays)[0]
        for row in range(1, rows - 1, 3):
            some = dict(arrays)
            for name in ("q", "row_weights"):
                some[name] = arrays[name][:, :, row : row + 2]
            for name in [name for name in arrays if "_new" in name]:
                some[name] = arrays[name][:, :, row : row + 2]
                cached = name.replace("new", "active")
                before = arrays[cached][:, :, :active], arrays[name][:, :, :row]
                some[cached] = np.concatenate(before, axis=2)
            some["active_len"] = arrays["active_len"] + row
            np.testing.assert_array_equal(ran(few, some)[0], together[:, :, row : row + 2])

"""Blocks and windows of rows in fewer bits, against the reference over what is kept."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins import reference
from avl_plugins.bodies.function import reach_functions, split_cache_attention_functions
from avl_plugins.bodies.kept_function import kept_attention_function
from avl_plugins.bodies.kept_reach import kept_reach_functions
from avl_plugins.schema import (
    BLOCK_CACHE_ATTENTION,
    BLOCK_OPS,
    FP16,
    INT8,
    INT8_INT4,
    WINDOW_CACHE_ATTENTION,
    WINDOW_OPS,
    RowType,
    rotation,
)
from ops.op_models import Arrays, op_model, run, session
from ops.test_reach_attention import CHECKED, HEAD_DIM, SCALE, ordered, reach_inputs

KINDS = (FP16, INT8, INT8_INT4)
WINDOWS = (None, 3)  # None: of blocks


@functools.cache
def loaded(
    kept: RowType, heads: int, kv_heads: int, window: int | None, library: Path | None
) -> ort.InferenceSession:
    reach = BLOCK_CACHE_ATTENTION if window is None else WINDOW_CACHE_ATTENTION
    op = (BLOCK_OPS if window is None else WINDOW_OPS)[kept.name]
    functions = (
        *kept_reach_functions(kept, reach, [HEAD_DIM]),
        kept_attention_function(kept, [HEAD_DIM]),
        *reach_functions(reach, heads=(heads, kv_heads)),
        *split_cache_attention_functions(heads=(heads, kv_heads)),
    )
    attributes = {"scale": SCALE} | ({} if window is None else {"window": window})
    sizes = {"H": heads, "Hkv": kv_heads, "D": HEAD_DIM, "E": 1, "W": HEAD_DIM // 2}
    return session(op_model(op, functions, sizes, attributes), library)


def keep(kept: RowType, arrays: Arrays, seed: int) -> Arrays:
    """The same with cached rows as they are kept."""
    cached = [f"{x}_{place}" for place in ("active", "parked") for x in "kv"]
    if kept == FP16:
        return arrays | {name: reference.halved(arrays[name]) for name in cached}
    found, draw = dict(arrays), np.random.default_rng(seed)
    for name in cached:
        found[name], found[f"{name}_scale"] = reference.coded(arrays[name])
        if kept.parked_bits is not None and name.endswith("_parked"):
            shape = *found[name].shape[:3], HEAD_DIM // 2
            found[name] = draw.integers(0, 256, shape).astype(np.uint8)
            found[f"{name}_scale"] = draw.random((*shape[:3], 1), np.float32)
    return found


def numbers(kept: RowType, arrays: Arrays, made: list[np.ndarray[Any, Any]]) -> Arrays:
    """What rows, the new ones as they were `made`, stand for, turned back."""
    arrays = arrays | {name: made[at] for at, name in enumerate(("k_new", "v_new"))}
    if kept == FP16:
        rows = {name: rows for name, rows in arrays.items() if rows.dtype == np.float16}
        return arrays | {name: rows.astype(np.float64) for name, rows in rows.items()}
    arrays |= {f"{name}_scale": made[2 + at] for at, name in enumerate(("k_new", "v_new"))}
    turn = rotation(HEAD_DIM)
    for name in [f"{x}_{place}" for place in ("active", "parked", "new") for x in "kv"]:
        codes, scale = arrays[name], arrays[f"{name}_scale"]
        if codes.dtype == np.uint8:
            rows = reference.unpacked(codes, scale, kept.parked_bits or 0)
        else:
            rows = reference.decoded(codes, scale)
        is_turned = name.startswith("k") or kept.parked_bits is not None
        arrays[name] = rows @ turn if is_turned else rows
    return arrays


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kept", KINDS, ids=lambda kept: kept.name)
@pytest.mark.parametrize("compiled", [False, True])
def test_rows_are_seen_as_they_are_kept(
    kept: RowType, window: int | None, compiled: bool, kernels: Path
) -> None:
    @settings(CHECKED, max_examples=10)
    @given(arrays=reach_inputs(window), seed=st.integers(0, 99))
    def check(arrays: Arrays, seed: int) -> None:
        heads = arrays["q"].shape[1], arrays["k_new"].shape[1]
        given_ = keep(kept, arrays, seed)
        model = loaded(kept, *heads, window, kernels if compiled else None)
        found = run(model, given_)
        seen = numbers(kept, given_, found[4:])
        for name in ("k_new", "v_new"):  # halves, or to a code's half step in each turned number
            off = np.abs(seen[name] - arrays[name]).max(-1)
            size = np.linalg.norm(arrays[name], axis=-1)
            assert (off <= size / (2000 if kept == FP16 else 80)).all()
        if window is None:
            want = reference.block_cache_attention(
                *ordered(BLOCK_CACHE_ATTENTION, seen), scale=SCALE
            )
        else:
            want = reference.window_cache_attention(
                *ordered(WINDOW_CACHE_ATTENTION, seen), scale=SCALE, window=window
            )
        for one, other in zip(found[:4], want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=3e-5)

    check()

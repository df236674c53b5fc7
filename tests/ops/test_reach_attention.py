"""Attention of blocks and windows: the reference by single pairs, and every form against it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.bodies.compiled_function import compiled_attention_function
from avl_plugins.bodies.function import reach_functions, split_cache_attention_functions
from avl_plugins.errors import OpError
from avl_plugins.reference import block_cache_attention, window_cache_attention
from avl_plugins.schema import BLOCK_CACHE_ATTENTION, WINDOW_CACHE_ATTENTION, Op
from ops.op_models import Arrays, attention_inputs, op_model, run, session

OPS = (BLOCK_CACHE_ATTENTION, WINDOW_CACHE_ATTENTION)
SCALE, HEAD_DIM = 0.35, 8
WINDOWS = (1, 3, 6, 100)
Form = Literal["body", "kernels", "compiled"]
CHECKED = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@st.composite
def reach_inputs(draw: Callable[[st.SearchStrategy[Any]], Any], window: int | None) -> Arrays:
    """Inputs with blocks of new rows and gaps between positions; a step's rows are in its window.

    Args:
        window: None for `BlockCacheAttention`.
    """
    arrays = draw(st.sampled_from([1, 2, 4]).flatmap(lambda g: attention_inputs(g, HEAD_DIM)))
    batch, _, count, _ = arrays["q"].shape
    ends = np.zeros((batch, count), np.int64)
    for row in ends:
        for begin, end in blocks(draw, count):
            row[begin:end] = end if draw(st.booleans()) else np.arange(begin, end) + 1
    arrays["row_ends"] = ends
    if window is None:
        return arrays
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    room, apart = arrays["k_active"].shape[2], draw(st.sampled_from([1, 2, 5]))
    line = np.cumsum(rng.integers(1, apart + 1, (batch, room + count)), 1)
    arrays["row_positions"] = line[:, room:].copy()
    arrays["active_positions"] = rng.permuted(line[:, :room], axis=1)
    if count == 1:
        near = arrays["active_positions"] > arrays["row_positions"] - window
        for b, used in enumerate(arrays["active_len"]):
            arrays["active_len"][b] = int(np.cumprod(near[b, :used]).sum())
    return arrays


def blocks(draw: Callable[[st.SearchStrategy[Any]], Any], count: int) -> list[tuple[int, int]]:
    cuts = sorted(draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    return list(zip([0, *cuts], [*cuts, count], strict=True))


def ordered(op: Op, arrays: Arrays) -> list[np.ndarray[Any, Any]]:
    return [arrays[value.name] for value in op.inputs]


def reference(arrays: Arrays, window: int | None) -> list[np.ndarray[Any, Any]]:
    if window is None:
        return list(block_cache_attention(*ordered(OPS[0], arrays), scale=SCALE))
    return list(window_cache_attention(*ordered(OPS[1], arrays), scale=SCALE, window=window))


def by_pairs(arrays: Arrays, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Output and all masses, from a question about each pair of a row and a key."""
    batch, heads, count, _ = arrays["q"].shape
    group = heads // arrays["k_new"].shape[1]
    rooms = [arrays[f"k_{place}"].shape[2] for place in ("active", "parked", "new")]
    out = np.zeros(arrays["q"].shape)
    shares = np.zeros((batch, heads // group, arrays["row_weights"].shape[1], sum(rooms)))
    for b, h, s in np.ndindex(batch, heads, count):
        keys: list[tuple[int, str, int]] = [
            (column, "active", column)
            for column in range(arrays["active_len"][b])
            if window is None
            or arrays["row_positions"][b, s] - arrays["active_positions"][b, column] < window
        ]
        keys += [(rooms[0] + n, "parked", n) for n in range(arrays["parked_len"][b])]
        keys += [
            (rooms[0] + rooms[1] + n, "new", n)
            for n in range(arrays["row_ends"][b, s])
            if window is None
            or arrays["row_positions"][b, s] - arrays["row_positions"][b, n] < window
        ]
        kv, query = h // group, arrays["q"][b, h, s].astype(float)
        scores = np.array([query @ arrays[f"k_{p}"][b, kv, n].astype(float) for _, p, n in keys])
        weights = np.exp(SCALE * (scores - scores.max()))
        weights /= weights.sum()
        for weight, (column, place, n) in zip(weights, keys, strict=True):
            out[b, h, s] += weight * arrays[f"v_{place}"][b, kv, n].astype(float)
            shares[b, kv, :, column] += weight * arrays["row_weights"][b, :, s] / group
    return out, shares


@functools.cache
def loaded(op: Op, heads: int, kv_heads: int, window: int | None, library: Path | None) -> Any:
    functions = (*reach_functions(op, heads=(heads, kv_heads)), *split_cache_attention_functions())
    return session(model_of(op, functions, heads, kv_heads, window), library)


@functools.cache
def for_compilers(op: Op, heads: int, kv_heads: int, window: int | None) -> Any:
    body = compiled_attention_function(23, (heads, kv_heads), op)
    inlined = onnx.inliner.inline_local_functions(model_of(op, [body], heads, kv_heads, window))
    # What TensorRT-RTX refuses, and what it cannot record.
    assert not {"NonZero", "If"} & {node.op_type for node in inlined.graph.node}
    return session(inlined)


def model_of(
    op: Op, functions: Sequence[onnx.FunctionProto], heads: int, kv_heads: int, window: int | None
) -> onnx.ModelProto:
    attributes = {"scale": SCALE} | ({} if window is None else {"window": window})
    sizes = {"H": heads, "Hkv": kv_heads, "D": HEAD_DIM}
    return op_model(op, functions, sizes, attributes)


@pytest.mark.parametrize("window", [None, *WINDOWS])
def test_the_reference_asks_about_each_pair(window: int | None) -> None:
    @CHECKED
    @given(arrays=reach_inputs(window))
    def check(arrays: Arrays) -> None:
        out, *masses = reference(arrays, window)
        wanted, shares = by_pairs(arrays, window)
        np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.concatenate(masses, 3), shares, rtol=1e-5, atol=1e-6)

    check()


@pytest.mark.parametrize("window", [None, *WINDOWS])
@pytest.mark.parametrize("form", ["body", "kernels", "compiled"])
def test_bodies_agree_with_the_reference(window: int | None, form: Form, kernels: Path) -> None:
    op = OPS[0 if window is None else 1]

    @CHECKED
    @given(arrays=reach_inputs(window))
    def check(arrays: Arrays) -> None:
        heads = arrays["q"].shape[1], arrays["k_new"].shape[1]
        if form == "compiled":
            model = for_compilers(op, *heads, window)
        else:
            model = loaded(op, *heads, window, kernels if form == "kernels" else None)
        for one, other in zip(run(model, arrays), reference(arrays, window), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

    check()


@pytest.mark.parametrize("op", OPS)
def test_functions_have_the_schemas_signature(op: Op) -> None:
    for function in reach_functions(op):
        assert list(function.input) == [value.name for value in op.inputs]
        assert list(function.output) == [value.name for value in op.outputs]
        assert list(function.attribute) == [attribute.name for attribute in op.attributes]


def test_stock_runtimes_know_every_node_of_the_bodies() -> None:
    model = op_model(
        OPS[1],
        (*reach_functions(OPS[1]), *split_cache_attention_functions()),
        {"H": 2, "Hkv": 1, "D": HEAD_DIM},
        {"scale": SCALE, "window": 3},
    )
    inlined = onnx.inliner.inline_local_functions(model)
    assert {node.domain for node in inlined.graph.node} == {""}
    assert isinstance(session(inlined), ort.InferenceSession)


@pytest.mark.parametrize("ends", [[[0, 2]], [[1, 3]]])
def test_ends_that_are_none_are_refused(ends: list[list[int]]) -> None:
    one = np.ones((1, 1, 2, HEAD_DIM), np.float32)
    arrays = dict.fromkeys(("q", "k_new", "v_new", "k_active", "v_active"), one)
    arrays |= {"k_parked": one, "v_parked": one, "active_len": np.zeros(1, np.int64)}
    arrays |= {"parked_len": np.zeros(1, np.int64), "row_weights": np.ones((1, 1, 2), np.float32)}
    arrays["row_ends"] = np.array(ends)
    with pytest.raises(OpError, match="row_ends: expected numbers of new rows, 2 at most"):
        reference(arrays, None)

"""Attention with a bias, and RESTORE's: the reference by single pairs, and bodies against it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.bodies.compiled_function import (
    compiled_attention_function,
    compiled_restored_functions,
)
from avl_plugins.bodies.function import split_cache_attention_functions
from avl_plugins.bodies.kept_function import kept_attention_function
from avl_plugins.bodies.restored_function import biased_functions, restored_functions
from avl_plugins.reference import (
    biased_cache_attention,
    coded,
    decoded,
    halved,
    split_cache_attention,
    standing_bias,
)
from avl_plugins.schema import (
    BIASED_CACHE_ATTENTION,
    BIASED_OPS,
    FP16,
    INT8,
    RESTORED_CACHE_ATTENTION,
    SPLIT_CACHE_ATTENTION,
    Op,
    RowType,
    rotation,
)
from ops.op_models import Arrays, attention_inputs, op_model, run, session

SCALE, HEAD_DIM, FAR = 0.35, 8, 40
PLACES = ("active", "parked", "new")
CHECKED = settings(max_examples=30, deadline=None, derandomize=True, database=None)


@st.composite
def biased_inputs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Arrays:
    """Biases of each KV head or of all, and numbers past lengths that must not be read."""
    arrays: Arrays = draw(st.sampled_from([1, 2, 4]).flatmap(lambda g: attention_inputs(g, 8)))
    batch, kv_heads, count, _ = arrays["k_new"].shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    heads = draw(st.sampled_from([1, kv_heads]))
    for place in PLACES:
        rows, apart = arrays[f"k_{place}"].shape[2], heads if place == "active" else 1
        bias = 3 * rng.standard_normal((batch, apart, count, rows)).astype(np.float32)
        for b, used in enumerate(arrays.get(f"{place}_len", ())):
            bias[b, :, :, used:] = 1e30
        arrays[f"bias_{place}"] = bias
    return arrays


@st.composite
def standing_inputs(draw: Callable[[st.SearchStrategy[Any]], Any], axes: int) -> Arrays:
    """Rows anywhere, that stand for several tokens or for none; sequences without a bias."""
    arrays: Arrays = draw(st.sampled_from([1, 2]).flatmap(lambda g: attention_inputs(g, 8)))
    batch, kv_heads, count, _ = arrays["k_new"].shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    apart = {"active": draw(st.sampled_from([1, kv_heads])), "parked": 1}
    arrays["nearness"] = rng.uniform(-1, 1, (axes, FAR)).astype(np.float32) / axes
    biased = rng.integers(0, 2, batch) if draw(st.booleans()) else np.zeros(batch, np.int64)
    arrays["row_standing"] = rng.integers(0, FAR, (batch, count, axes + 1))
    arrays["row_standing"][..., -1] = biased[:, None]
    for place, heads in apart.items():
        shape = (batch, heads, arrays[f"k_{place}"].shape[2], axes + 1)
        standing = rng.integers(0, FAR, shape)
        standing[..., -1] = rng.integers(0, 4, shape[:3])
        arrays[f"{place}_standing"] = standing
    return arrays


def ordered(op: Op, arrays: Arrays) -> list[np.ndarray[Any, Any]]:
    return [arrays[value.name] for value in op.inputs]


def by_pairs(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Output and all masses, from a question about each pair of a row and a key."""
    batch, heads, count, _ = arrays["q"].shape
    kv_heads = arrays["k_new"].shape[1]
    group, rooms = heads // kv_heads, [arrays[f"k_{place}"].shape[2] for place in PLACES]
    out = np.zeros(arrays["q"].shape)
    shares = np.zeros((batch, kv_heads, arrays["row_weights"].shape[1], sum(rooms)))
    for b, h, s in np.ndindex(batch, heads, count):
        kv, query = h // group, arrays["q"][b, h, s].astype(float)
        found = []
        for number, place in enumerate(PLACES):
            used = s + 1 if place == "new" else arrays[f"{place}_len"][b]
            bias = arrays[f"bias_{place}"][b]
            for n in range(used):
                score = SCALE * (query @ arrays[f"k_{place}"][b, kv, n].astype(float))
                column = sum(rooms[:number]) + n
                added = float(bias[min(kv, len(bias) - 1), s, n])
                found.append((column, np.exp(score + added), arrays[f"v_{place}"][b, kv, n]))
        total = sum(weight for _, weight, _ in found)
        for column, weight, value in found:
            out[b, h, s] += weight / total * value.astype(float)
            of_rows = arrays["row_weights"][b, :, s] / group
            shares[b, kv, :, column] += weight / total * of_rows
    return out, shares


@functools.cache
def for_compilers(heads: int, kv_heads: int) -> Any:
    body = compiled_attention_function(23, (heads, kv_heads), BIASED_CACHE_ATTENTION)
    sizes = {"H": heads, "Hkv": kv_heads, "D": HEAD_DIM, "E": 1}
    return session(op_model(BIASED_CACHE_ATTENTION, [body], sizes, {"scale": SCALE}))


@functools.cache
def restored_for_compilers(heads: int, kv_heads: int, axes: int) -> Any:
    functions = compiled_restored_functions(23, (heads, kv_heads), axes)
    sizes = {"H": heads, "Hkv": kv_heads, "D": HEAD_DIM, "E": 1, "Z": axes + 1, "X": axes}
    model = op_model(RESTORED_CACHE_ATTENTION, functions, sizes, {"scale": SCALE})
    inlined = onnx.inliner.inline_local_functions(model)
    # What an engine is made of: no If, which cannot be recorded.
    assert "If" not in {node.op_type for node in inlined.graph.node}
    return session(inlined)


@functools.cache
def loaded(op: Op, heads: int, kv_heads: int, axes: int, library: Path | None) -> Any:
    functions = (*restored_functions(axes, heads=(heads, kv_heads)),)
    functions += split_cache_attention_functions(heads=(heads, kv_heads))
    sizes = {"H": heads, "Hkv": kv_heads, "D": HEAD_DIM, "E": 1, "Z": axes + 1, "X": axes}
    return session(op_model(op, functions, sizes, {"scale": SCALE}), library)


@CHECKED
@given(arrays=biased_inputs())
def test_the_reference_asks_about_each_pair(arrays: Arrays) -> None:
    out, *masses = biased_cache_attention(*ordered(BIASED_CACHE_ATTENTION, arrays), scale=SCALE)
    wanted, shares = by_pairs(arrays)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(masses, 3), shares, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["body", "kernels", "body for compilers"])
def test_forms_agree_with_the_reference(form: str, kernels: Path) -> None:
    @CHECKED
    @given(arrays=biased_inputs())
    def check(arrays: Arrays) -> None:
        heads = arrays["q"].shape[1], arrays["k_new"].shape[1]
        model = loaded(BIASED_CACHE_ATTENTION, *heads, 1, kernels if form == "kernels" else None)
        found = run(for_compilers(*heads) if form == "body for compilers" else model, arrays)
        given = ordered(BIASED_CACHE_ATTENTION, arrays)
        for one, other in zip(found, biased_cache_attention(*given, scale=SCALE), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

    check()


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("form", ["body", "kernels", "body for compilers"])
def test_where_rows_stand_makes_the_bias(axes: int, form: str, kernels: Path) -> None:
    @CHECKED
    @given(arrays=standing_inputs(axes))
    def check(arrays: Arrays) -> None:
        heads = arrays["q"].shape[1], arrays["k_new"].shape[1]
        library = kernels if form == "kernels" else None
        model = loaded(RESTORED_CACHE_ATTENTION, *heads, axes, library)
        compiled = form == "body for compilers"
        found = run(restored_for_compilers(*heads, axes) if compiled else model, arrays)
        rows = arrays["row_standing"]
        both = [arrays["active_standing"], arrays["parked_standing"], rows[:, None]]
        biases = [standing_bias(arrays["nearness"], rows, keys) for keys in both]
        given = [*ordered(SPLIT_CACHE_ATTENTION, arrays), *biases]
        for one, other in zip(found, biased_cache_attention(*given, scale=SCALE), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)

    check()


def test_the_bias_is_what_the_paper_says() -> None:
    """ln(s (2 - D)), D as the facts of heads of 128 numbers, base 10,000, have it."""
    distances = np.array([0, 1, 10, 100, 576])
    turns = distances[:, None] * 1e4 ** (-np.arange(64) / 64)
    nearness = np.zeros((1, 600), np.float32)
    nearness[0, distances] = np.cos(turns).mean(1)
    keys = np.stack([600 - 1 - distances, np.ones(5, np.int64)], 1)[None, None]
    bias = standing_bias(nearness, np.array([[[599, 1]]]), keys)[0, 0, 0]
    np.testing.assert_allclose(bias, [0, 0.0294, 0.2859, 0.4205, 0.5688], atol=5e-5)
    keys[..., 1] = 4
    np.testing.assert_allclose(
        standing_bias(nearness, np.array([[[599, 1]]]), keys)[0, 0, 0], bias + np.log(4), atol=1e-6
    )


@CHECKED
@given(arrays=standing_inputs(1))
def test_without_a_bias_nothing_of_cached_rows_is_read(arrays: Arrays) -> None:
    """As a runtime gives it: one row for all of them."""
    arrays["row_standing"][..., -1] = 0
    for place in ("active", "parked"):
        arrays[f"{place}_standing"] = np.zeros((len(arrays["q"]), 1, 1, 2), np.int64)
    heads = arrays["q"].shape[1], arrays["k_new"].shape[1]
    found = run(loaded(RESTORED_CACHE_ATTENTION, *heads, 1, None), arrays)
    expected = split_cache_attention(*ordered(SPLIT_CACHE_ATTENTION, arrays), scale=SCALE)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", [1, 3])
def test_stock_runtimes_know_every_node_of_the_bodies(axes: int) -> None:
    functions = (*restored_functions(axes), *split_cache_attention_functions())
    sizes = {"H": 2, "Hkv": 1, "D": HEAD_DIM, "E": 1, "Z": axes + 1, "X": axes}
    model = op_model(RESTORED_CACHE_ATTENTION, functions, sizes, {"scale": SCALE})
    inlined = onnx.inliner.inline_local_functions(model)
    assert {node.domain for node in inlined.graph.node} == {""}
    assert isinstance(session(inlined), ort.InferenceSession)


def as_kept(arrays: Arrays, kept: RowType) -> tuple[Arrays, Arrays]:
    """What the op of rows that are kept so is given, and the numbers that these stand for."""
    given, meant = dict(arrays), dict(arrays)
    turn = rotation(HEAD_DIM)
    if kept.scaled:
        meant["q"] = arrays["q"].astype(np.float64) @ turn
    for place, kind in itertools.product(PLACES, "kv"):
        name, rows = f"{kind}_{place}", arrays[f"{kind}_{place}"]
        if kept.scaled:
            turned = rows.astype(np.float64) @ turn if kind == "k" else rows
            codes, scale = coded(turned)
            meant[name] = decoded(codes, scale)
            stored = {name: codes, f"{name}_scale": scale}
        else:
            stored = {name: halved(rows)}
            meant[name] = stored[name].astype(np.float64)
        if place != "new":
            given |= stored
    return given, meant


@functools.cache
def of_kept(kept: RowType, heads: int, kv_heads: int, library: Path | None) -> Any:
    functions = (
        kept_attention_function(kept, [HEAD_DIM], biased=True),
        *biased_functions(heads=(heads, kv_heads)),
    )
    sizes = {"H": heads, "Hkv": kv_heads, "D": HEAD_DIM, "E": 1}
    return session(op_model(BIASED_OPS[kept.name], functions, sizes, {"scale": SCALE}), library)


@pytest.mark.parametrize("kept", [FP16, INT8], ids=lambda kept: kept.name)
@pytest.mark.parametrize("compiled", [False, True])
def test_rows_that_are_kept_otherwise_take_it_too(
    kept: RowType, compiled: bool, kernels: Path
) -> None:
    @CHECKED
    @given(arrays=biased_inputs())
    def check(arrays: Arrays) -> None:
        heads = arrays["q"].shape[1], arrays["k_new"].shape[1]
        stored, meant = as_kept(arrays, kept)
        op = BIASED_OPS[kept.name]
        inputs = {value.name: stored[value.name] for value in op.inputs}
        found = run(of_kept(kept, *heads, kernels if compiled else None), inputs)
        expected = biased_cache_attention(*ordered(BIASED_CACHE_ATTENTION, meant), scale=SCALE)
        for one, other in zip(found, expected, strict=False):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=3e-5)

    check()

"""SplitCacheUpdate: the reference and the function body against a list of labelled rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.inliner
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from avl_plugins.bodies.function import split_cache_update_function
from avl_plugins.errors import AvlError
from avl_plugins.reference import split_cache_update
from avl_plugins.schema import PLUGIN_ATTRIBUTES, SPLIT_CACHE_UPDATE
from ops.op_models import NUMPY_TYPES, Arrays, op_model, run, session


@functools.cache
def update_session(element: int, inline: bool) -> ort.InferenceSession:
    model = op_model(
        SPLIT_CACHE_UPDATE,
        [split_cache_update_function()],
        {},
        PLUGIN_ATTRIBUTES,
        element=element,
    )
    return session(onnx.inliner.inline_local_functions(model) if inline else model)


def caches(batch: int, heads: int, sizes: tuple[int, int, int], width: int, kind: Any) -> Arrays:
    """Rows whose every element tells where it was."""
    labels = np.arange(batch * heads * sum(sizes) * width).reshape(batch, heads, -1, width)
    a, p, _ = sizes
    arrays: Arrays = {}
    for cache, sign in (("k", 1), ("v", -1)):
        rows = (sign * (labels + 1)).astype(kind)
        arrays[f"{cache}_active"] = rows[:, :, :a].copy()
        arrays[f"{cache}_parked"] = rows[:, :, a : a + p].copy()
        arrays[f"{cache}_new"] = rows[:, :, a + p :].copy()
    return arrays


@st.composite
def updates(
    draw: Callable[[st.SearchStrategy[Any]], Any], element: int = TensorProto.FLOAT
) -> Arrays:
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    a, p, s = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    moves = draw(st.integers(1, a + p + 2))
    arrays = caches(batch, heads, (a, p, s), draw(st.integers(1, 3)), NUMPY_TYPES[element])
    source = np.zeros((batch, heads, moves), np.int64)
    destination = np.full((batch, heads, moves), -1, np.int64)
    for b in range(batch):
        for h in range(heads):
            addresses = st.integers(0, a + p + s - 1)
            source[b, h] = draw(st.lists(addresses, min_size=moves, max_size=moves))
            targets = draw(st.permutations(range(a + p)))[:moves]
            skipped = draw(st.lists(st.booleans(), min_size=moves, max_size=moves))
            for m, target in enumerate(targets):
                if not skipped[m]:
                    destination[b, h, m] = target
    return {**arrays, "source": source, "destination": destination}


def by_hand(arrays: Arrays) -> Arrays:
    """The caches after the moves, row by row on Python lists."""
    result = {}
    for cache in ("k", "v"):
        places = [arrays[f"{cache}_{place}"] for place in ("active", "parked", "new")]
        active, parked = np.zeros_like(places[0]), np.zeros_like(places[1])
        for b, h in np.ndindex(places[0].shape[:2]):
            before = [row.tolist() for place in places for row in place[b, h]]
            after = list(before)
            pairs = zip(arrays["source"][b, h], arrays["destination"][b, h], strict=True)
            for source, destination in pairs:
                if destination != -1:
                    after[destination] = before[source]
            active[b, h] = after[: active.shape[2]]
            parked[b, h] = after[active.shape[2] : active.shape[2] + parked.shape[2]]
        result |= {f"{cache}_active": active, f"{cache}_parked": parked}
    return result


def by_reference(arrays: Arrays) -> tuple[np.ndarray[Any, Any], ...]:
    return split_cache_update(*(arrays[value.name] for value in SPLIT_CACHE_UPDATE.inputs))


def assert_all_forms_give(arrays: Arrays, wanted: Arrays, element: int = TensorProto.FLOAT) -> None:
    order = ("k_active", "v_active", "k_parked", "v_parked")
    forms = [by_reference(arrays)]
    forms += [run(update_session(element, inline), arrays) for inline in (False, True)]
    for form in forms:
        for name, found in zip(order, form, strict=True):
            np.testing.assert_array_equal(found, wanted[name])


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(arrays=updates())
def test_moves_rows(arrays: Arrays) -> None:
    before = {name: array.copy() for name, array in arrays.items()}
    assert_all_forms_give(arrays, by_hand(arrays))
    for name, array in before.items():
        np.testing.assert_array_equal(arrays[name], array)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(arrays=updates(TensorProto.FLOAT16))
def test_moves_rows_in_half_precision(arrays: Arrays) -> None:
    assert_all_forms_give(arrays, by_hand(arrays), TensorProto.FLOAT16)


def one_update(source: list[int], destination: list[int]) -> Arrays:
    """3 active, 2 parked and 2 new rows, labelled 1 to 7."""
    arrays = caches(1, 1, (3, 2, 2), 1, np.float32)
    return {
        **arrays,
        "source": np.array([[source]], np.int64),
        "destination": np.array([[destination]], np.int64),
    }


@pytest.mark.parametrize(
    ("source", "destination", "active", "parked"),
    [
        pytest.param([1, 3], [3, 1], [1, 4, 3], [2, 5], id="exchange"),
        pytest.param([5, 6], [2, 4], [1, 2, 6], [4, 7], id="append"),
        pytest.param([2, 0], [0, -1], [3, 2, 3], [4, 5], id="evict by moving the last row down"),
        pytest.param([0, 1, 2], [1, 2, 0], [3, 1, 2], [4, 5], id="cycle"),
        pytest.param([5, 6], [-1, -1], [1, 2, 3], [4, 5], id="nothing"),
        pytest.param([6, 6], [0, 4], [7, 2, 3], [4, 7], id="one row to two places"),
    ],
)
def test_named_moves(
    source: list[int], destination: list[int], active: list[int], parked: list[int]
) -> None:
    wanted: Arrays = {}
    for name, rows in (("active", active), ("parked", parked)):
        wanted[f"k_{name}"] = np.array(rows, np.float32).reshape(1, 1, -1, 1)
        wanted[f"v_{name}"] = -wanted[f"k_{name}"]
    assert_all_forms_give(one_update(source, destination), wanted)


@pytest.mark.parametrize(
    ("source", "destination", "words"),
    [
        ([7], [0], "source from 0 to 6"),
        ([-1], [0], "source from 0 to 6"),
        ([0], [5], "destination from -1 to 4"),
        ([0], [-2], "destination from -1 to 4"),
        ([0, 1], [2, 2], "unique destinations"),
    ],
)
def test_bad_addresses_are_refused(source: list[int], destination: list[int], words: str) -> None:
    with pytest.raises(AvlError, match=words):
        by_reference(one_update(source, destination))

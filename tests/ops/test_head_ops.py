"""Ops between linears and attention: bodies and kernels against float64, head by head."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from avl_plugins.bodies.heads_body import heads_function
from avl_plugins.cpu.build import HEADS_LEVELS
from avl_plugins.schema import JOINED_HEADS, NORMED_ROTARY_HEADS, ROTARY_HEADS, Op
from ops.op_models import Arrays, op_model, run, session
from support.compiled import library_for

Form = Callable[..., list[NDArray[np.float32]]]
LEVELS = {"base": (), "avx2": HEADS_LEVELS["avl_heads_avx2"]}
LEVELS |= {"avx512": HEADS_LEVELS["avl_heads_avx512"]}
EPSILON = 1e-5


@functools.cache
def opened(
    op: Op, kernels: Path | None, level: str, attributes: tuple[tuple[str, Any], ...]
) -> ort.InferenceSession:
    """An op in a graph of its own; `level` is what the environment says, which a session reads."""
    model = op_model(op, [heads_function(op)], {}, dict(attributes))
    return session(model, kernels, intra_op_num_threads=2)


@pytest.fixture(params=["body", *LEVELS])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """An op's results by its body, or by kernels for instructions that this processor has."""
    library = library_for(request, monkeypatch, LEVELS)

    def computed(op: Op, arrays: Arrays, **attributes: Any) -> list[NDArray[np.float32]]:
        given = tuple(sorted(attributes.items()))
        return run(opened(op, library, request.param, given), arrays)

    return computed


@st.composite
def rows(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[Arrays, dict[str, Any]]:
    """What RotaryHeads is given, and its attributes: of few rows and many, turned in part."""
    batch, new = draw(st.sampled_from([(1, 1), (1, 5), (3, 1), (2, 3), (2, 21)]))
    size = draw(st.sampled_from([2, 6, 16, 40, 64]))
    pairs = draw(st.sampled_from([1, size // 2]))
    heads = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    angles = rng.uniform(-9, 9, (batch, new, pairs))
    arrays = {
        name: rng.standard_normal((batch * new, count * size), np.float32)
        for name, count in (("q", heads * draw(st.integers(1, 3))), ("k", heads), ("v", heads))
    }
    arrays |= {"cos": np.cos(angles), "sin": np.sin(angles)}
    attributes = {
        "head_size": size,
        "interleaved": draw(st.integers(0, 1)),
        "rotated": 0 if 2 * pairs == size else 2 * pairs,
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}, attributes


def turned(x: NDArray[np.float64], cos: Any, sin: Any, interleaved: int) -> NDArray[np.float64]:
    """Heads [B, S, H, D] turned as complex numbers."""
    pairs = cos.shape[-1]
    places = np.arange(2 * pairs)
    low, high = (places[::2], places[1::2]) if interleaved else (places[:pairs], places[pairs:])
    numbers = (x[..., low] + 1j * x[..., high]) * (cos + 1j * sin)[:, :, None]
    found = x.copy()
    found[..., low], found[..., high] = numbers.real, numbers.imag
    return found


def wanted(arrays: Arrays, attributes: dict[str, Any]) -> list[NDArray[np.float64]]:
    exact = {name: array.astype(np.float64) for name, array in arrays.items()}
    cos, sin = exact["cos"], exact["sin"]
    found = []
    for name in ("q", "k", "v"):
        heads = exact[name].reshape(*cos.shape[:2], -1, attributes["head_size"])
        norm = exact.get(f"{name}_norm")
        if norm is not None:
            heads = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + EPSILON) * norm
        if name != "v":
            heads = turned(heads, cos, sin, attributes["interleaved"])
        found.append(heads.transpose(0, 2, 1, 3))
    return found


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(rows(), st.booleans())
def check(form: Form, made: tuple[Arrays, dict[str, Any]], norms: bool) -> None:
    arrays, attributes = made
    op, more = ROTARY_HEADS, {}
    if norms:
        numbers = np.random.default_rng(1)
        op, more = NORMED_ROTARY_HEADS, {"epsilon": EPSILON}
        for name in ("q_norm", "k_norm"):
            arrays[name] = numbers.standard_normal(attributes["head_size"]).astype(np.float32)
    found = form(op, arrays, **attributes, **more)
    for one, exact in zip(found, wanted(arrays, attributes), strict=True):
        np.testing.assert_allclose(one, exact, rtol=1e-5, atol=4e-6)


def test_heads_are_those_of_float64(form: Form) -> None:
    check(form)


@pytest.mark.parametrize("shape", [(1, 3, 1, 4), (2, 3, 5, 7), (2, 1, 40, 16)])
def test_joined_heads_are_the_same_numbers(form: Form, shape: tuple[int, ...]) -> None:
    heads = np.random.default_rng(0).standard_normal(shape, np.float32)
    (found,) = form(JOINED_HEADS, {"heads": heads})
    rows = shape[0] * shape[2]
    np.testing.assert_array_equal(found, heads.transpose(0, 2, 1, 3).reshape(rows, -1))


def test_shapes_that_do_not_agree_are_refused(kernels: Path) -> None:
    given = {"head_size": 4, "interleaved": 0, "rotated": 0}
    fed = {"q": (2, 8), "k": (2, 4), "v": (2, 4), "cos": (1, 2, 2), "sin": (1, 2, 2)}
    opened = session(op_model(ROTARY_HEADS, [heads_function(ROTARY_HEADS)], {}, given), kernels)
    run(opened, {name: np.zeros(shape, np.float32) for name, shape in fed.items()})
    for name, shape in {
        "q": (2, 6),
        "k": (3, 4),
        "v": (2, 8),
        "sin": (2, 1, 2),
        "cos": (1, 2, 3),
    }.items():
        arrays = {n: np.zeros(s, np.float32) for n, s in {**fed, name: shape}.items()}
        with pytest.raises(Exception, match="expected shapes that agree"):
            run(opened, arrays)

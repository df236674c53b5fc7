"""Ops of layers with a state: bodies and kernels against the rules row by row, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from avl_plugins import reference
from avl_plugins.bodies.state_body import CHUNK, state_function
from avl_plugins.cpu.build import DELTA_LEVELS
from avl_plugins.schema import (
    CONVOLUTIONS,
    GATED_DELTA_RULE,
    SHORT_CONVOLUTION,
    SHORT_CONVOLUTION_SILU,
    Op,
)
from ops.op_models import op_model, run, session
from support.compiled import library_for

Floats = NDArray[np.float32]
Form = Callable[[Op, int, Mapping[str, Floats]], list[Floats]]
OPSET = 23
LEVELS = {"base": (), "avx2": DELTA_LEVELS["avl_delta_avx2"]}
LEVELS |= {"avx512": DELTA_LEVELS["avl_delta_avx512"]}
NAIVE: Mapping[str, Callable[..., tuple[NDArray[np.floating], ...]]] = {
    SHORT_CONVOLUTION.name: reference.short_convolution,
    SHORT_CONVOLUTION_SILU.name: reference.short_convolution_silu,
    GATED_DELTA_RULE.name: reference.gated_delta_rule,
}


@functools.cache
def opened(op: Op, kernel: int, kernels: Path | None, level: str) -> ort.InferenceSession:
    """An op in a graph of its own; `level` is what the environment says, which a session reads."""
    model = op_model(op, [state_function(op, kernel, OPSET)], {}, {}, opset=OPSET)
    return session(model, kernels, intra_op_num_threads=2)


@pytest.fixture(params=["body", *LEVELS])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """An op's results by its body, or by kernels for instructions that this processor has."""
    library = library_for(request, monkeypatch, LEVELS)

    def computed(op: Op, kernel: int, feeds: Mapping[str, Floats]) -> list[Floats]:
        return run(opened(op, kernel, library, request.param), dict(feeds))

    return computed


def check(form: Form, op: Op, kernel: int, feeds: Mapping[str, Floats], atol: float) -> None:
    found = form(op, kernel, feeds)
    for one, other in zip(found, NAIVE[op.name](**feeds), strict=True):
        np.testing.assert_allclose(one, other, atol=atol, rtol=0)


def rule(
    batch: int, rows: int, key_heads: int, heads: int, sizes: tuple[int, int], alike: float = 0
) -> dict[str, Floats]:
    """Random inputs of the rule; `alike` is how large what all keys have in common is."""
    rng = np.random.default_rng(rows)

    def drawn(*shape: int) -> Floats:
        return rng.standard_normal(shape, np.float32)

    size, width = sizes
    return {
        "q": drawn(batch, rows, key_heads, size),
        "k": drawn(batch, rows, key_heads, size) + alike * drawn(batch, 1, key_heads, size),
        "v": drawn(batch, rows, heads, width),
        "decay": -np.abs(drawn(batch, rows, heads)) * np.float32(0.3),
        "beta": 1 / (1 + np.exp(-drawn(batch, rows, heads))),
        "delta_state": drawn(batch, heads, size, width),
    }


@pytest.mark.parametrize("sizes", [(10, 14), (64, 80)])
@pytest.mark.parametrize("rows", [1, 2, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("alike", [0, 5])
def test_the_delta_rule(form: Form, rows: int, alike: float, sizes: tuple[int, int]) -> None:
    """Also of keys at a cosine of 0.96, as those of neighbouring patches are."""
    check(form, GATED_DELTA_RULE, 4, rule(2, rows, 3, 6, sizes, alike), 2e-6)


def test_a_state_may_be_forgotten_at_once(form: Form) -> None:
    """Exponents of later rows' decays would be infinite, were they not left out before."""
    feeds = rule(1, CHUNK, 1, 3, (8, 5))
    feeds["decay"] *= 400
    assert feeds["decay"].sum(1).min() < -1e3
    check(form, GATED_DELTA_RULE, 4, feeds, 2e-6)


def test_cuts_change_nothing(form: Form) -> None:
    """A prompt in pieces, the second one a single row, leaves the state that it leaves whole."""
    feeds = rule(1, 2 * CHUNK + 7, 2, 4, (6, 10))
    whole = form(GATED_DELTA_RULE, 4, feeds)
    outputs, state = [], feeds["delta_state"]
    for begin, end in ((0, 7), (7, 8), (8, CHUNK + 9), (CHUNK + 9, 2 * CHUNK + 7)):
        part = {name: feeds[name][:, begin:end] for name in ("q", "k", "v", "decay", "beta")}
        out, state = form(GATED_DELTA_RULE, 4, {**part, "delta_state": state})
        outputs.append(out)
    np.testing.assert_allclose(np.concatenate(outputs, 1), whole[0], atol=2e-6, rtol=0)
    np.testing.assert_allclose(state, whole[1], atol=2e-6, rtol=0)


@pytest.mark.parametrize("op", CONVOLUTIONS, ids=lambda op: op.name)
@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize(("rows", "channels"), [(1, 300), (2, 5), (9, 67)])
def test_the_convolution(form: Form, op: Op, kernel: int, rows: int, channels: int) -> None:
    rng = np.random.default_rng(kernel)
    shapes = {"x": (2, rows, channels), "conv_state": (2, kernel - 1, channels)}
    shapes["weight"] = (channels, kernel)
    feeds = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    check(form, op, kernel, feeds, 2e-6)


def test_shapes_that_do_not_fit_are_refused(kernels: Path) -> None:
    feeds = rule(1, 3, 2, 4, (6, 10))
    feeds["beta"] = feeds["beta"][:, :2]
    with pytest.raises(Exception, match="expected shapes that agree"):
        run(opened(GATED_DELTA_RULE, 4, kernels, ""), feeds)
    ones = np.ones((1, 3, 8), np.float32)
    feeds = {"x": ones, "conv_state": ones, "weight": ones[0].T.copy()}
    with pytest.raises(Exception, match="a state of one row fewer than its inputs"):
        run(opened(CONVOLUTIONS[0], 3, kernels, ""), feeds)

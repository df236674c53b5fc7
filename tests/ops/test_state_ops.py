"""Ops of layers with a state: function bodies against the rules row by row, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper

from avl_plugins import reference
from avl_plugins.bodies.state_body import CHUNK, state_function
from avl_plugins.schema import DOMAIN, GATED_DELTA_RULE, SHORT_CONVOLUTION, VERSION, Op

Floats = NDArray[np.float32]
OPSET = 23
NAIVE: Mapping[str, Callable[..., tuple[NDArray[np.floating], ...]]] = {
    SHORT_CONVOLUTION.name: reference.short_convolution,
    GATED_DELTA_RULE.name: reference.gated_delta_rule,
}


@functools.cache
def session(op: Op, kernel: int = 4) -> ort.InferenceSession:
    """The body of an op in a graph of its own, without kernels."""
    kind = onnx.TensorProto.FLOAT
    inputs, outputs = (
        [helper.make_tensor_value_info(v.name, kind, [None] * len(v.shape)) for v in values]
        for values in (op.inputs, op.outputs)
    )
    names = [value.name for value in op.inputs], [value.name for value in op.outputs]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(op.name, *names, domain=DOMAIN)], op.name, inputs, outputs
        ),
        ir_version=11,
        functions=[state_function(op, kernel, OPSET)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
    )
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def check(op: Op, kernel: int, feeds: Mapping[str, Floats], atol: float) -> None:
    found = session(op, kernel).run(None, dict(feeds))
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


@pytest.mark.parametrize("rows", [1, 2, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("alike", [0, 5])
def test_the_delta_rule(rows: int, alike: float) -> None:
    """Also of keys at a cosine of 0.96, as those of neighbouring patches are."""
    check(GATED_DELTA_RULE, 4, rule(2, rows, 3, 6, (10, 14), alike), 2e-6)


def test_a_state_may_be_forgotten_at_once() -> None:
    """Exponents of later rows' decays would be infinite, were they not left out before."""
    feeds = rule(1, CHUNK, 1, 3, (8, 5))
    feeds["decay"] *= 400
    assert feeds["decay"].sum(1).min() < -1e3
    check(GATED_DELTA_RULE, 4, feeds, 2e-6)


def test_cuts_change_nothing() -> None:
    """A prompt in pieces, the second one a single row, leaves the state that it leaves whole."""
    feeds, body = rule(1, 2 * CHUNK + 7, 2, 4, (6, 10)), session(GATED_DELTA_RULE)
    whole = body.run(None, feeds)
    outputs, state = [], feeds["delta_state"]
    for begin, end in ((0, 7), (7, 8), (8, CHUNK + 9), (CHUNK + 9, 2 * CHUNK + 7)):
        part = {name: array[:, begin:end] for name, array in feeds.items() if name in "qkv"}
        part |= {name: feeds[name][:, begin:end] for name in ("decay", "beta")}
        out, state = body.run(None, {**part, "delta_state": state})
        outputs.append(out)
    np.testing.assert_allclose(np.concatenate(outputs, 1), whole[0], atol=2e-6, rtol=0)
    np.testing.assert_allclose(state, whole[1], atol=2e-6, rtol=0)


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_the_convolution(kernel: int, rows: int) -> None:
    rng = np.random.default_rng(kernel)
    shapes = {"x": (2, rows, 5), "conv_state": (2, kernel - 1, 5), "weight": (5, kernel)}
    feeds = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    check(SHORT_CONVOLUTION, kernel, feeds, 1e-6)

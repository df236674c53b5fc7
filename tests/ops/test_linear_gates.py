"""Two linears of which one gates the other, in one op: kernels and bodies against float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper

from avl_plugins import cpu
from avl_plugins.bodies.function import linear_function
from avl_plugins.bodies.linear_ops import GATED_LINEARS, GATES
from ops import test_plain_linear as plain_linears
from ops.op_models import session
from ops.test_linear_endings import gelu, random_model, tanh_gelu
from ops.test_quantized_linear import LEVELS

Floats = NDArray[np.float32]
KINDS = ["float", "codes", "zeros"]


def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / (1 + np.exp(-x))


FUNCTIONS = {"SiluGate": silu, "GeluGate": gelu, "TanhGeluGate": tanh_gelu}


def gated(model: onnx.ModelProto, gate: str) -> onnx.ModelProto:
    """A model of one node of two linears, of which the first gates the second."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    (node,) = made.graph.node
    op = GATED_LINEARS[node.op_type, gate]
    node.op_type = op.name
    node.output[:] = ["y"]
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    del made.functions[:]
    made.functions.append(linear_function(op, 23))
    return made


def assert_gates(found: Floats, products: list[Floats], gate: str) -> None:
    """Within what float32 rounds: a product may be summed in another order, by itself."""
    first, second = (product.astype(np.float64) for product in products)
    function = FUNCTIONS[gate](first)
    error = 2.0**-23 * (4 * np.abs(first) + 4 * np.abs(function)) * np.abs(second)
    assert found.shape == first.shape
    assert (np.abs(found - function * second) <= error + 1e-37).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate", GATES)
def test_a_kernel_gates_its_products(quantized_kernel: Path, gate: str, kind: str) -> None:
    """Few rows and many, with AMX where there is one: 700 are more than a block of rows.

    Outputs fill tiles and tasks, or leave some of them with a part or with nothing.
    """
    numbers = np.random.default_rng(3)
    for outputs in (6, 70, 132, 1152):
        model = random_model(kind, [outputs, outputs])
        given = {"intra_op_num_threads": 2}
        before = session(model, quantized_kernel, **given)
        after = session(gated(model, gate), quantized_kernel, **given)
        for rows in (0, 1, 5, 70, 700):
            x = numbers.standard_normal((rows, 64)).astype(np.float32)
            (found,) = after.run(None, {"x": x})
            assert_gates(found, before.run(None, {"x": x}), gate)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("level", ["base", *LEVELS[::2]])
def test_every_level_gates_by_all_numbers(quantized_kernel: Path, level: str, gate: str) -> None:
    """Weights of one times x, which bf16 and 8 bits would round: in float32."""
    x = np.zeros((4003, 16), np.float32)
    x[:, 0] = [*np.linspace(-12, 12, 3999), 3e18, -3e18, 1e-30, -0.0]
    x[:, 1] = np.linspace(-3, 3, 4003)
    weights = np.zeros((2, 3, 16), np.float16)
    weights[0, :, 0] = weights[1, :, 1] = 1
    model = plain_linears.model_of(plain_linears.Linear(x, (weights[0], weights[1])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cpu.LEVEL_SWITCH, level)
        run = session(gated(model, gate), quantized_kernel)
    (found,) = run.run(None, {"x": x})
    with np.errstate(over="ignore"):
        assert_gates(found, [np.repeat(x[:, i : i + 1], 3, 1) for i in (0, 1)], gate)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("gate", GATES)
def test_what_is_no_number_stays_in_its_row(
    quantized_kernel: Path, gate: str, value: float
) -> None:
    x = np.ones((3, 64), np.float32)
    x[1, 5] = value
    run = session(gated(random_model("float", [20, 20]), gate), quantized_kernel)
    (found,) = run.run(None, {"x": x})
    assert np.isfinite(found[[0, 2]]).all()
    if np.isnan(value):
        assert np.isnan(found[1]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate", GATES)
def test_a_body_gives_the_same(gate: str, kind: str) -> None:
    model = random_model(kind, [6, 6])
    none: dict[str, Any] = {"graph_optimization_level": ort.GraphOptimizationLevel.ORT_DISABLE_ALL}
    x = np.random.default_rng(4).standard_normal((5, 64)).astype(np.float32)
    products = session(model, **none).run(None, {"x": x})
    (found,) = session(gated(model, gate), **none).run(None, {"x": x})
    assert_gates(found, products, gate)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate", GATES)
def test_weights_of_other_sizes_are_refused(quantized_kernel: Path, gate: str, kind: str) -> None:
    """By the kernel of each op, which is there then."""
    with pytest.raises(Exception, match="as many outputs if one gates another"):
        session(gated(random_model(kind, [6, 4]), gate), quantized_kernel)

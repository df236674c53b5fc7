"""Which biases and functions become part of a linear's node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ops.op_models import session
from support.linears import joined, types_of

GELUS = {"AddBiasGelu": "none", "AddBiasTanhGelu": "tanh"}


def model_of(
    function: str,
    *,
    slope: float = 1.702,
    reshaped: bool = True,
    shown: Sequence[str] = (),
    bias: Sequence[int] = (5,),
) -> onnx.ModelProto:
    """x [rows, 16] through a linear and what torch's exporter writes behind it.

    `shown` values are outputs too. `bias`: its shape.
    """
    numbers = np.random.default_rng(0)
    nodes = [helper.make_node("Gemm", ["x", "weight", "bias"], ["sums"], transB=1)]
    sums = "sums"
    if reshaped:
        nodes.append(helper.make_node("Reshape", ["sums", "sizes"], ["shaped"]))
        sums = "shaped"
    if function in GELUS:
        nodes.append(helper.make_node("Gelu", [sums], ["y"], approximate=GELUS[function]))
    else:
        nodes += [
            helper.make_node("Mul", [sums, "slope"], ["steep"]),
            helper.make_node("Sigmoid", ["steep"], ["share"]),
            helper.make_node("Mul", ["share", sums], ["y"]),
        ]
    nodes.append(helper.make_node("Neg", ["y"], ["out"]))
    tensors = {
        "weight": numbers.standard_normal((5, 16)).astype(np.float32),
        "bias": numbers.standard_normal(bias).astype(np.float32),
        "slope": np.array(slope, np.float32),
        "sizes": np.array([1, -1, 5]),
    }
    flat = ["rows", 5]
    shape = [1, *flat] if reshaped else flat
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 16])],
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, flat if name == "sums" else shape
            )
            for name in ("out", *shown)
        ],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def assert_same(found: onnx.ModelProto, wanted: onnx.ModelProto) -> None:
    x = np.random.default_rng(1).standard_normal((3, 16), np.float32)
    results = [session(one).run(None, {"x": x}) for one in (found, wanted)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reshaped", [False, True])
@pytest.mark.parametrize("function", [*GELUS, "AddBiasQuickGelu"])
def test_a_function_of_sums_becomes_part_of_the_node(function: str, reshaped: bool) -> None:
    plain = model_of(function, reshaped=reshaped)
    found = joined(plain)
    assert types_of(found) == Counter([f"Linear{function}", "Neg"] + ["Reshape"] * reshaped)
    assert_same(found, plain)


@pytest.mark.parametrize(
    "plain",
    [
        pytest.param(model_of("AddBiasGelu", shown=["shaped"]), id="sums-are-an-output"),
        pytest.param(model_of("AddBiasGelu", shown=["sums"]), id="products-are-an-output"),
        pytest.param(model_of("AddBiasGelu", shown=["y"]), id="it-is-an-output"),
        pytest.param(model_of("AddBiasQuickGelu", shown=["share"]), id="a-part-is-an-output"),
        pytest.param(model_of("AddBiasQuickGelu", slope=1.5), id="another-slope"),
    ],
)
def test_another_function_stays(plain: onnx.ModelProto) -> None:
    found = joined(plain)
    assert types_of(found) == types_of(plain) + Counter(["LinearAddBias"]) - Counter(["Gemm"])
    assert_same(found, plain)


def test_a_bias_that_is_no_row_is_added_by_itself() -> None:
    plain = model_of("AddBiasGelu", bias=(1, 5))
    found = joined(plain)
    assert types_of(found) == types_of(plain) + Counter(["Linear", "Add"]) - Counter(["Gemm"])
    assert_same(found, plain)


def test_a_tower_has_no_bias_and_no_function_of_its_own(tiny_package: Path) -> None:
    graph = onnx.load(tiny_package / "vision.onnx", load_external_data=False).graph
    ops = Counter(node.op_type for node in graph.node)
    assert ops["LinearAddBiasQuickGelu"] == ops["Linear3AddBias"] == 4
    assert not ops["Sigmoid"] and not ops["Linear"] and not ops["Gemm"]

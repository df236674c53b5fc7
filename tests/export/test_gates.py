"""Which products of two linears become one node's."""

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

GELUS = {"GeluGate": "none", "TanhGeluGate": "tanh"}
GATES = ["SiluGate", *GELUS]


def model_of(
    gate: str,
    *,
    turned: bool = False,
    others: int = 0,
    outputs: tuple[int, int] = (5, 5),
    shown: Sequence[str] = (),
    bias: Sequence[str] = (),
    same: bool = True,
) -> onnx.ModelProto:
    """x [rows, 16] through two linears and what torch's exporter writes behind them.

    Args:
        turned: factors of products come in the other order, and the second linear first.
        others: linears of the same x beside them, before and behind.
        outputs: of both.
        shown: values that are outputs too.
        bias: which of "gate" and "up" have one.
        same: whether both multiply the same rows.
    """
    numbers = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}

    def gemm(name: str, width: int, x: str = "x") -> onnx.NodeProto:
        tensors[f"{name}.weight"] = numbers.standard_normal((width, 16)).astype(np.float32)
        names = [x, f"{name}.weight"]
        if name in bias:
            tensors[f"{name}.bias"] = numbers.standard_normal(width).astype(np.float32)
            names.append(f"{name}.bias")
        return helper.make_node("Gemm", names, [name], transB=1)

    def mul(one: str, another: str, product: str) -> onnx.NodeProto:
        factors = [another, one] if turned else [one, another]
        return helper.make_node("Mul", factors, [product])

    pair = [gemm("gate", outputs[0]), gemm("up", outputs[1], "x" if same else "x_too")]
    beside = [gemm(f"other{i}", 7) for i in range(others)]
    nodes = [*beside[::2], *(pair[::-1] if turned else pair), *beside[1::2]]
    if gate in GELUS:
        nodes.append(helper.make_node("Gelu", ["gate"], ["open"], approximate=GELUS[gate]))
    else:
        nodes += [helper.make_node("Sigmoid", ["gate"], ["share"]), mul("gate", "share", "open")]
    nodes += [mul("open", "up", "y"), helper.make_node("Neg", ["y"], ["out"])]
    widths = dict.fromkeys(("gate", "open", "share"), outputs[0]) | {"up": outputs[1]}
    widths |= {"out": max(outputs), "y": max(outputs)} | {f"other{i}": 7 for i in range(others)}
    found = ["out", *shown, *(f"other{i}" for i in range(others))]
    graph = helper.make_graph(
        nodes,
        "gated",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 16])
            for name in ("x", "x_too")
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", widths[n]]) for n in found],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def assert_same(found: onnx.ModelProto, wanted: onnx.ModelProto) -> None:
    numbers = np.random.default_rng(1)
    fed = {name: numbers.standard_normal((3, 16), np.float32) for name in ("x", "x_too")}
    results = [session(one).run(None, fed) for one in (found, wanted)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("gate", GATES)
def test_what_gates_becomes_part_of_the_node(gate: str, turned: bool) -> None:
    plain = model_of(gate, turned=turned)
    found = joined(plain)
    assert types_of(found) == Counter([f"Linear2{gate}", "Neg"])
    assert_same(found, plain)


def test_linears_beside_them_are_a_node_of_their_own() -> None:
    plain = model_of("SiluGate", others=4)
    found = joined(plain)
    assert types_of(found) == Counter(["Linear2SiluGate", "Neg", "Linear3", "Linear"])
    assert_same(found, plain)


@pytest.mark.parametrize(
    "plain",
    [
        pytest.param(model_of("SiluGate", shown=["gate"]), id="the-gate-is-an-output"),
        pytest.param(model_of("SiluGate", shown=["share"]), id="a-part-is-an-output"),
        pytest.param(model_of("TanhGeluGate", shown=["open"]), id="its-function-is-an-output"),
        pytest.param(model_of("GeluGate", shown=["up"]), id="what-is-gated-is-an-output"),
        pytest.param(model_of("SiluGate", shown=["y"]), id="it-is-an-output"),
        pytest.param(model_of("SiluGate", bias=["gate", "up"]), id="with-biases"),
        pytest.param(model_of("SiluGate", bias=["up"]), id="with-a-bias"),
        pytest.param(model_of("SiluGate", outputs=(1, 5)), id="one-gate-for-all"),
        pytest.param(model_of("SiluGate", same=False), id="of-other-rows"),
    ],
)
def test_other_gates_stay(plain: onnx.ModelProto) -> None:
    found = joined(plain)
    kinds = types_of(found)
    assert not any(kind.endswith("Gate") for kind in kinds)
    for kind in ("Mul", "Sigmoid", "Gelu"):
        assert kinds[kind] == types_of(plain)[kind]
    assert_same(found, plain)


def test_a_decoder_has_no_gates_of_its_own(tiny_package: Path) -> None:
    for file in tiny_package.glob("decoder.*.onnx"):
        kinds = types_of(onnx.load(file, load_external_data=False))
        assert kinds["Linear2SiluGate"] == kinds["JoinedHeads"] > 0
        assert not kinds["Sigmoid"]

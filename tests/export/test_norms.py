"""Which sums and norms of a decoder become one node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from avl_export.graph.linears import join_linears
from avl_export.graph.norms import join_norms
from ops.op_models import session
from support.linears import types_of

WIDTH = 16


def model_of(
    *between: str,
    turned: bool = False,
    constant: bool = False,
    axis: int = -1,
    weight: Sequence[int] = (WIDTH,),
    from_linear: bool = True,
    norms: int = 1,
    cast: bool = False,
    shown: Sequence[str] = (),
) -> onnx.ModelProto:
    """h + a part's rows of x, and the norm of the sum, as they are traced.

    Args:
        between: ops between the part and the sum: "RMSNormalization", "Mul" or "Neg".
        turned: whether the part's rows are added to the others.
        constant: whether something constant is added.
        axis: of the norm.
        weight: its weight's shape.
        from_linear: whether the part is a linear.
        norms: of the same sum.
        cast: whether their weights are in 16 bits, and cast behind the sum.
        shown: values that are outputs too.
    """
    numbers = np.random.default_rng(0)
    tensors = {
        "linear": numbers.standard_normal((WIDTH, WIDTH)).astype(np.float32),
        "constant": numbers.standard_normal((1, WIDTH)).astype(np.float32),
        "scale": np.array(0.22, np.float32),
        "between": numbers.standard_normal(WIDTH).astype(np.float32),
    }
    part = "part0"
    nodes = [
        helper.make_node("Gemm", ["x", "linear"], [part], transB=1)
        if from_linear
        else helper.make_node("Tanh", ["x"], [part])
    ]
    for at, kind in enumerate(between, 1):
        more = {"RMSNormalization": ["between"], "Mul": ["scale"], "Neg": []}[kind]
        nodes.append(helper.make_node(kind, [part, *more], [f"part{at}"]))
        part = f"part{at}"
    terms = ["constant" if constant else "h", part]
    nodes.append(helper.make_node("Add", terms[::-1] if turned else terms, ["sum"]))
    for i in range(norms):
        tensors[f"weight{i}"] = numbers.standard_normal(weight).astype(np.float32)
        names = ["sum", f"weight{i}"]
        if cast:
            tensors[f"weight{i}"] = tensors[f"weight{i}"].astype(np.float16)
            names[1] = f"cast{i}"
            nodes.append(helper.make_node("Cast", [f"weight{i}"], [names[1]], to=TensorProto.FLOAT))
        nodes.append(
            helper.make_node(
                "RMSNormalization", names, [f"norm{i}"], axis=axis, epsilon=0.5, name=f"n{i}"
            )
        )
        nodes.append(helper.make_node("Neg", [f"norm{i}"], [f"y{i}"]))
    nodes.append(helper.make_node("Neg", ["sum"], ["carried"]))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "norms",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH])
            for name in ("x", "h")
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH])
            for name in ("carried", *(f"y{i}" for i in range(norms)), *shown)
        ],
        [numpy_helper.from_array(array, name) for name, array in tensors.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def joined(model: onnx.ModelProto) -> onnx.ModelProto:
    found = ir.from_proto(model)
    join_linears(found)
    join_norms(found)
    proto = ir.to_proto(found)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def assert_same(found: onnx.ModelProto, wanted: onnx.ModelProto) -> None:
    numbers = np.random.default_rng(1)
    fed = {name: numbers.standard_normal((3, WIDTH), np.float32) for name in ("x", "h")}
    results = [session(one).run(None, fed) for one in (found, wanted)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("between", [(), ("Mul",), ("RMSNormalization",)])
def test_a_sum_and_its_norm_are_one_node(between: tuple[str, ...], turned: bool) -> None:
    plain = model_of(*between, turned=turned)
    found = joined(plain)
    assert types_of(found) == Counter(["Linear", *between, "AddRMSNorm", "Neg", "Neg"])
    assert_same(found, plain)


def test_weights_may_be_cast_from_16_bits() -> None:
    plain = model_of(cast=True)
    found = joined(plain)
    assert types_of(found) == Counter(["Linear", "Cast", "AddRMSNorm", "Neg", "Neg"])
    assert_same(found, plain)


def test_both_may_be_outputs_and_keep_their_names() -> None:
    plain = model_of(shown=["sum", "norm0"])
    found = joined(plain)
    assert types_of(found)["AddRMSNorm"] == 1
    assert [value.name for value in found.graph.output][-2:] == ["sum", "norm0"]
    assert_same(found, plain)


def test_another_norm_reads_the_sum() -> None:
    plain = model_of(norms=2)
    found = joined(plain)
    kinds = ["Linear", "AddRMSNorm", "RMSNormalization", *["Neg"] * 3]
    assert types_of(found) == Counter(kinds)
    assert_same(found, plain)


@pytest.mark.parametrize(
    "plain",
    [
        pytest.param(model_of(constant=True), id="of-a-constant"),
        pytest.param(model_of(from_linear=False), id="of-no-linear"),
        pytest.param(model_of("Neg"), id="of-something-else-behind-a-linear"),
        pytest.param(model_of(axis=0, weight=(1, WIDTH)), id="of-all-rows"),
        pytest.param(model_of(weight=(1, WIDTH)), id="of-a-weight-with-axes"),
    ],
)
def test_other_sums_stay(plain: onnx.ModelProto) -> None:
    found = joined(plain)
    kinds = types_of(found)
    assert not kinds["AddRMSNorm"]
    assert kinds["Add"] == 1 and kinds["RMSNormalization"] == 1
    assert_same(found, plain)


def test_a_decoder_adds_nothing_by_itself_but_for_its_last_rows(tiny_package: Path) -> None:
    """Logits are of some of the rows, whose norm is of a part of the sum."""
    first, last = sorted(tiny_package.glob("decoder.?.onnx"))
    for file, own in ((first, 1), (last, 1)):
        kinds = types_of(onnx.load(file, load_external_data=False))
        layers = kinds["JoinedHeads"]
        assert layers and kinds["Add"] == own
        assert kinds["AddRMSNorm"] == 2 * layers - own

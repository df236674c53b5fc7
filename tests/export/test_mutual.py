"""Which Attention nodes of an encoder become MutualAttention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from avl_export.graph.mutual import name_attention

FLOAT = TensorProto.FLOAT
HEADS_APART = (0, 2, 1, 3)


def encoder(
    kind: int = FLOAT,
    masked: bool = False,
    order: Sequence[int] = HEADS_APART,
    after: Sequence[int] = HEADS_APART,
    shown: bool = False,
    sizes: str = "bhsd",
    given_sizes: str = "bshd",
    **more: Any,
) -> ir.Model:
    """Attention as torch's exporter writes it; keys are values too.

    `sizes` of what it makes are said anew, o being -1. `shown`: that is an output.
    """
    given = [helper.make_tensor_value_info(n, kind, ["rows", 16]) for n in ("q", "k")]
    given.append(helper.make_tensor_value_info("mask", kind, ["S", "S"]))
    given += [helper.make_tensor_value_info(n, TensorProto.INT64, [1]) for n in "bs"]
    inputs = ["q_heads", "k_heads", "k_heads", *(["mask"] if masked else [])]
    nodes = [
        helper.make_node("Concat", list(given_sizes), ["rows_shape"], axis=0),
        helper.make_node("Reshape", ["q", "rows_shape"], ["q_rows"]),
        helper.make_node("Reshape", ["k", "rows_shape"], ["k_rows"]),
        helper.make_node("Transpose", ["q_rows"], ["q_heads"], perm=order),
        helper.make_node("Transpose", ["k_rows"], ["k_heads"], perm=HEADS_APART),
        helper.make_node("Attention", inputs, ["heads"], scale=0.5, **more),
        helper.make_node("Concat", list(sizes), ["heads_shape"], axis=0),
        helper.make_node("Reshape", ["heads", "heads_shape"], ["same_heads"]),
        helper.make_node("Transpose", ["same_heads"], ["out"], perm=after),
    ]
    out = [helper.make_tensor_value_info("out", kind, ["B", "S", "H", "D"])]
    if shown:
        out.append(helper.make_tensor_value_info("heads", kind, ["B", "H", "S", "D"]))
    constants = [
        helper.make_tensor(n, TensorProto.INT64, [1], [i])
        for n, i in (("h", 2), ("d", 8), ("o", -1))
    ]
    graph = helper.make_graph(nodes, "encoder", given, out, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    return ir.serde.deserialize_model(model)


@pytest.mark.parametrize(
    ("given_sizes", "sizes"), [("bshd", "bhsd"), ("bsod", "bhsd"), ("bshd", "bhod")]
)
def test_attention_of_all_rows_becomes_one_op(given_sizes: str, sizes: str) -> None:
    model = encoder(is_causal=0, softcap=0.0, given_sizes=given_sizes, sizes=sizes)
    name_attention(model)
    assert not {node.op_type for node in model.graph} & {"Attention", "Transpose"}
    (node,) = (node for node in model.graph if node.domain)
    assert (node.domain, node.op_type) == ("avl", "MutualAttention")
    assert [value.name for value in node.inputs if value is not None] == [
        *("q_rows", "k_rows", "k_rows")
    ]
    assert node.attributes["scale"].as_float() == 0.5
    assert [value.name for value in model.graph.outputs] == ["out"]
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)


def test_a_tower_has_it_in_every_layer(tiny_package: Path) -> None:
    graph = onnx.load(tiny_package / "vision.onnx", load_external_data=False).graph
    ops = Counter(node.op_type for node in graph.node)
    assert ops["MutualAttention"] == 4 and ops["Attention"] == 0
    assert ops["Transpose"] == 1  # of what the convolution makes


@pytest.mark.parametrize(
    "given",
    [
        {"is_causal": 1},
        {"softcap": 3.0},
        {"masked": True},
        {"kind": TensorProto.FLOAT16},
        {"order": (0, 1, 2, 3)},
        {"after": (1, 0, 2, 3)},
        {"shown": True},
        {"sizes": "bshd"},
        {"sizes": "bohd"},
        {"given_sizes": "oshd", "sizes": "bhod"},
    ],
    ids=str,
)
def test_other_attention_stays(given: dict[str, Any]) -> None:
    model = encoder(**given)
    before = [node.op_type for node in model.graph]
    name_attention(model)
    assert [node.op_type for node in model.graph] == before
    assert not model.functions

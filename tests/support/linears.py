"""Graphs whose linears are joined."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir

from avl_export.linears import join_linears


def joined(model: onnx.ModelProto) -> onnx.ModelProto:
    found = ir.from_proto(model)
    join_linears(found)
    proto = ir.to_proto(found)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def types_of(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)

"""Mixtures of experts in graphs: nodes of an op of ours that reads its weights as stored."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from avl_export.graph.attention import node_of
from avl_plugins.bodies.experts_body import experts_function
from avl_plugins.schema import DOMAIN, SPARSE_EXPERTS, VERSION

STACKS = {"gate_up": "gate_up_trans", "down": "down_trans"}  # inputs, and what says their order
_PLACES = {value.name: place for place, value in enumerate(SPARSE_EXPERTS.inputs)}


def translation() -> dict[Any, Any]:
    """Entries for the custom translation table; `attention.translation` registers the schema."""
    return {torch.ops.avl.sparse_experts.default: node_of(SPARSE_EXPERTS)}


def is_stack(value: ir.Value) -> bool:
    """Whether an initializer is read by experts alone, which take it as it is stored."""
    places = {_PLACES[name] for name in STACKS}
    uses = list(value.uses())
    return bool(uses) and all(is_experts(use.node) and use.idx in places for use in uses)


def is_experts(node: ir.Node | None) -> bool:
    return node is not None and (node.domain, node.op_type) == (DOMAIN, SPARSE_EXPERTS.name)


def swap(value: ir.Value) -> None:
    """Tell the readers of a stack that it is stored with inputs before outputs."""
    for node, index in value.uses():
        name = next(name for name in STACKS if _PLACES[name] == index)
        node.attributes[STACKS[name]] = ir.AttrInt64(STACKS[name], 0)


def attach_experts(model: ir.Model) -> None:
    """Give a model the op's body, if it has such nodes."""
    if any(is_experts(node) for node in model.graph):
        function = ir.serde.deserialize_function(experts_function(model.opset_imports[""]))
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = VERSION

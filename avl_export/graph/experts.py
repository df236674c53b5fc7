"""Mixtures of experts in graphs: nodes of ops of ours that read weights as stored, or codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from avl_export.checkpoint.places import QuantizedPlace
from avl_export.graph.attention import node_of
from avl_export.quantize.nodes import SCALES, external
from avl_plugins.bodies.experts_body import experts_function
from avl_plugins.schema import DOMAIN, QUANTIZED_EXPERTS, SPARSE_EXPERTS, VERSION

STACKS = {"gate_up": "gate_up_trans", "down": "down_trans"}  # inputs, and what says their order
_PLACES = {value.name: place for place, value in enumerate(QUANTIZED_EXPERTS[4].inputs)}
_OPS = {op.name: op for op in (SPARSE_EXPERTS, *QUANTIZED_EXPERTS.values())}
_CODES = {4: ir.DataType.UINT8, 8: ir.DataType.INT8}


def translation() -> dict[Any, Any]:
    """Entries for the custom translation table; `attention.translation` registers the schema."""
    return {torch.ops.avl.sparse_experts.default: node_of(SPARSE_EXPERTS)}


def is_stack(value: ir.Value) -> bool:
    """Whether an initializer is read by experts alone, which take it as it is stored."""
    places = {_PLACES[name] for name in STACKS}
    uses = list(value.uses())
    return bool(uses) and all(is_experts(use.node) and use.idx in places for use in uses)


def is_experts(node: ir.Node | None) -> bool:
    return node is not None and node.domain == DOMAIN and node.op_type in _OPS


def swap(value: ir.Value) -> None:
    """Tell the readers of a stack that it is stored with inputs before outputs."""
    for node, index in value.uses():
        name = next(name for name in STACKS if _PLACES[name] == index)
        node.attributes[STACKS[name]] = ir.AttrInt64(STACKS[name], 0)


def bind_stack(
    graph: ir.Graph, weight: ir.Value, name: str, place: QuantizedPlace, base: Path
) -> None:
    """Let the experts that read a stack read codes and scales instead.

    A node's stacks are quantized both, and bound one after the other.

    Args:
        base: the folder that the place's location is relative to.
    """
    op, location = QUANTIZED_EXPERTS[place.bits], place.location
    codes, scales = (
        external(graph, f"{name}.{kind}", dtype, list(record.shape), record, location, base)
        for kind, dtype, record in (
            (f"int{place.bits}", _CODES[place.bits], place.codes),
            ("scale", SCALES[place.scales.dtype], place.scales),
        )
    )
    for node, index in list(weight.uses()):
        stack = next(stack for stack in STACKS if _PLACES[stack] == index)
        node.op_type = op.name
        node.resize_inputs(len(op.inputs))
        node.replace_input_with(index, codes)
        node.replace_input_with(_PLACES[f"{stack}_scales"], scales)
        del node.attributes[STACKS[stack]]


def attach_experts(model: ir.Model) -> None:
    """Give a model the bodies of such ops, if it has nodes of them."""
    for name in sorted({node.op_type for node in model.graph if is_experts(node)}):
        body = experts_function(_OPS[name], model.opset_imports[""])
        function = ir.serde.deserialize_function(body)
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = VERSION

"""Clean a traced graph up, add the plugin attributes, attach the ops' function bodies."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import _constant_folding

from avl_export.graph.answers import open_answers
from avl_export.graph.experts import attach_experts
from avl_export.graph.flatten import flatten_rows
from avl_export.graph.frames import open_frames
from avl_export.graph.heads import join_heads
from avl_export.graph.linears import join_linears
from avl_export.graph.mutual import name_attention
from avl_export.graph.norms import join_norms
from avl_export.graph.states import attach_states
from avl_export.graph.trace import Traced
from avl_plugins.bodies.function import (
    attention_node_attributes,
    reach_functions,
    split_cache_attention_functions,
)
from avl_plugins.schema import (
    BLOCK_CACHE_ATTENTION,
    DOMAIN,
    SPLIT_CACHE_ATTENTION,
    VERSION,
    WINDOW_CACHE_ATTENTION,
)

FOLD_LIMIT = 1024  # bytes; folding is for shapes and scalars only


def finish(traced: Traced) -> ir.Model:
    """Clean the bound graph of `traced` up, in place, and return it.

    No pass here reads a tensor that lies in the checkpoint.
    """
    model = traced.model
    open_frames(model)
    passes.RemoveUnusedNodesPass()(model)
    _constant_folding.FoldConstantsPass(
        shape_inference=False,
        input_size_limit=FOLD_LIMIT,
        output_size_limit=FOLD_LIMIT,
        should_fold=lambda node: False if any(map(_is_external, node.inputs)) else None,
    )(model)
    passes.IdentityEliminationPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _share_constants(model.graph)
    _share_lead_shapes(model.graph)
    if traced.heads:
        flatten_rows(model.graph)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.NameFixPass()(model)
    _strip(model)
    for _ in range(traced.taps):
        model.graph.outputs.pop()
    if traced.heads:
        _attach_function(model, traced.heads)
    else:
        name_attention(model)
    join_linears(model)
    join_heads(model)
    if traced.heads:
        join_norms(model)
    open_answers(model.graph)
    return model


def _is_external(value: ir.Value | None) -> bool:
    return value is not None and isinstance(value.const_value, ir.ExternalTensor)


def _share_constants(graph: ir.Graph) -> None:
    """Merge equal constants that the exporter made; never looks at checkpoint tensors."""
    seen: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or _is_external(value) or tensor.size > 64:
            continue
        key = (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        first = seen.setdefault(key, value)
        if first is not value:
            value.replace_all_uses_with(first)
            graph.initializers.pop(name)


def _share_lead_shapes(graph: ir.Graph) -> None:
    """Every Shape(x, end=-1) over [batch, seq, *] reads the same value: keep one."""
    first: dict[tuple[str, ...], ir.Value] = {}
    for node in list(graph):
        end = node.attributes.get("end")
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "Shape" or end is None or end.as_int() != -1:
            continue
        start = node.attributes.get("start")
        if source is None or source.shape is None or (start is not None and start.as_int() != 0):
            continue
        lead = tuple(str(dim) for dim in source.shape[:-1])
        kept = first.setdefault(lead, node.outputs[0])
        if kept is not node.outputs[0]:
            node.outputs[0].replace_all_uses_with(kept)
            graph.remove(node, safe=True)


def _strip(model: ir.Model) -> None:
    """Drop the exporter's traces: they are most of the file and name this machine's paths."""
    graph = model.graph
    graph.metadata_props.clear()
    model.metadata_props.clear()
    kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in kept:
                value.shape = None
                value.type = None
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()


def _attach_function(model: ir.Model, heads: tuple[int, int]) -> None:
    """Give the attention nodes their plugin attributes, and the model the ops' bodies."""
    found = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for node in [node for node in model.graph if node.op_type == SPLIT_CACHE_ATTENTION.name]:
        scale = node.attributes["scale"].as_float()
        for name, value in attention_node_attributes(scale).items():
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
    # A runtime inlines the body only if its default opset is the model's.
    opset = model.opset_imports[""]
    protos = list(split_cache_attention_functions(opset, heads))
    for op in (BLOCK_CACHE_ATTENTION, WINDOW_CACHE_ATTENTION):
        if op.name in found:
            protos += reach_functions(op, opset, heads)
    for proto in protos:
        body = ir.serde.deserialize_function(proto)
        model.functions[body.identifier()] = body
    attach_states(model)
    attach_experts(model)
    model.opset_imports[DOMAIN] = VERSION

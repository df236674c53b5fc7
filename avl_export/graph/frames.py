"""What becomes of attention over whole frames, which a trace holds as one node each."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from avl_export.families.encoders import frame_attention
from avl_plugins.bodies.function import mutual_attention_function
from avl_plugins.bodies.mutual_body import Cut
from avl_plugins.schema import DOMAIN, MASKED_MUTUAL_ATTENTION, MUTUAL_ATTENTION, VERSION

Q, MASK = 0, 3  # inputs of the node


def open_frames(model: ir.Model) -> None:
    """Let MutualAttention take the place of the nodes of `frame_attention`, in place.

    Graphs in float32 keep it, for runtimes with a kernel; in others its body does.

    Raises:
        ValueError: nodes of one graph are cut in different ways, which no family's are.
    """
    graph = model.graph
    found = [node for node in graph if node.domain == frame_attention.DOMAIN]
    cuts = {_cut(node) for node in found}
    if len(cuts) > 1:
        raise ValueError(f"expected attention over frames to be cut in one way, found {cuts}")
    seen: dict[ir.Value, ir.Value] = {}  # by mask
    for node in found:
        mask = node.inputs[MASK] if len(node.inputs) > MASK else None
        if mask is not None and mask not in seen:
            seen[mask] = _seen(graph, node, mask)
        _replace(graph, node, next(iter(cuts)), None if mask is None else seen[mask])
    model.opset_imports.pop(frame_attention.DOMAIN, None)
    for cut in cuts:
        used = {node.op_type for node in graph if node.domain == DOMAIN}
        for op in (MUTUAL_ATTENTION, MASKED_MUTUAL_ATTENTION):
            if op.name in used:
                masked = op is MASKED_MUTUAL_ATTENTION
                proto = mutual_attention_function(model.opset_imports[""], cut, masked=masked)
                function = ir.serde.deserialize_function(proto)
                model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = VERSION
    if found and graph.inputs[0].dtype != ir.DataType.FLOAT:
        passes.InlinePass()(model)
        passes.IdentityEliminationPass()(model)
        model.opset_imports.pop(DOMAIN, None)


def _cut(node: ir.Node) -> Cut:
    heads, parts, width = (node.attributes[n].as_int() for n in frame_attention.SIZES)
    return Cut(heads, width // heads, parts)


def _seen(graph: ir.Graph, before: ir.Node, mask: ir.Value) -> ir.Value:
    """Which keys a mask shows, as truth values."""
    zero = ir.node("CastLike", [_constant(graph, before, 0.0), mask])
    equal = ir.node("Equal", [mask, zero.outputs[0]])
    graph.insert_before(before, [zero, equal])
    return equal.outputs[0]


def _constant(graph: ir.Graph, before: ir.Node, value: float | list[int]) -> ir.Value:
    kind = "value_float" if isinstance(value, float) else "value_ints"
    made = ir.node("Constant", [], {kind: value})
    graph.insert_before(before, made)
    return made.outputs[0]


def _replace(graph: ir.Graph, node: ir.Node, cut: Cut, seen: ir.Value | None) -> None:
    apart = _constant(graph, node, [0, 0, cut.heads, cut.head_dim])
    flat = _constant(graph, node, [0, 0, cut.heads * cut.head_dim])
    rows = [ir.node("Reshape", [value, apart]) for value in node.inputs[:MASK]]
    op = MUTUAL_ATTENTION if seen is None else MASKED_MUTUAL_ATTENTION
    inputs = [*(one.outputs[0] for one in rows), *([] if seen is None else [seen])]
    scale = node.attributes["scale"].as_float()
    named = ir.node(op.name, inputs, {"scale": scale}, domain=DOMAIN)
    joined = ir.node("Reshape", [named.outputs[0], flat])
    graph.insert_before(node, [*rows, named, joined])
    node.outputs[0].replace_all_uses_with(joined.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)

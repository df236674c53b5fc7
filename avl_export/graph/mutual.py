"""One op for attention in encoders and the transposes of its rows, for runtimes with a kernel."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from avl_plugins.bodies.function import mutual_attention_function
from avl_plugins.schema import DOMAIN, MUTUAL_ATTENTION, VERSION

QUERIES_KEYS_VALUES = 3
OPEN = -1
HEADS_APART = (0, 2, 1, 3)  # [B, S, H, D] to [B, H, S, D], and back


def name_attention(model: ir.Model) -> None:
    """Let MutualAttention take the place of Attention nodes of an encoder in float32, in place.

    With them go the transposes of queries, keys, values and what comes out, so that heads of a row
    stay side by side. Attention without these, or with a mask, a cache, a cap on scores or causal
    ones, stays.
    """
    graph = model.graph
    if graph.inputs[0].dtype != ir.DataType.FLOAT:
        return
    found = [node for node in graph if _is_mutual(node)]
    for node in found:
        _replace(graph, node)
    if found:
        function = ir.serde.deserialize_function(mutual_attention_function(model.opset_imports[""]))
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = VERSION


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    before = [value.producer() for value in node.inputs if value is not None]
    after = _behind(node)
    scale = node.attributes["scale"].as_float()
    rows = [None if one is None else one.inputs[0] for one in before]
    named = ir.node(MUTUAL_ATTENTION.name, rows, {"scale": scale}, domain=DOMAIN)
    graph.insert_before(node, named)
    old, new = after[-1].outputs[0], named.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove([*reversed(after), node], safe=True)
    for transpose in set(before):
        if transpose is not None and not transpose.outputs[0].uses():
            graph.remove(transpose, safe=True)


def _is_mutual(node: ir.Node) -> bool:
    if node.op_type != "Attention" or node.domain or len(node.outputs) != 1:
        return False
    switches = (node.attributes.get(name) for name in ("is_causal", "softcap"))
    return (
        len(node.inputs) == QUERIES_KEYS_VALUES
        and "scale" in node.attributes
        and not any(one is not None and one.value for one in switches)
        and all(value is not None and _parts_heads(value.producer()) for value in node.inputs)
        and len(_behind(node)) > 0
    )


def _behind(node: ir.Node) -> list[ir.Node]:
    """The transpose that alone reads what attention makes, behind a Reshape to the shape it has."""
    found: list[ir.Node] = []
    made = node.outputs[0]
    while not made.is_graph_output() and len(readers := [use.node for use in made.uses()]) == 1:
        (reader,) = readers
        found.append(reader)
        if _parts_heads(reader):
            return found
        if reader.op_type != "Reshape" or len(found) > 1 or not _keeps_shape(reader, node):
            break
        made = reader.outputs[0]
    return []


def _keeps_shape(reshape: ir.Node, attention: ir.Node) -> bool:
    """Whether what follows attention has the sizes of its queries, which a Reshape made."""
    queries = attention.inputs[0]
    parted = None if queries is None else queries.producer()
    rows = None if parted is None or parted.inputs[0] is None else parted.inputs[0].producer()
    if rows is None or rows.op_type != "Reshape":
        return False
    made, given = _sizes(reshape), _sizes(rows)
    if made is None or given is None:
        return False
    pairs = zip(made, (given[i] for i in HEADS_APART), strict=True)
    other = [pair for pair in pairs if not _same(*pair)]
    # One size that a Reshape works out is the other's too, where all others are the same.
    return not other or (len(other) == 1 and any(map(_is_open, other[0])))


def _same(one: int | ir.Value, another: int | ir.Value) -> bool:
    if isinstance(one, int) and isinstance(another, int):
        return one == another
    return one is another  # values that torch's exporter makes give nodes where they are compared


def _is_open(size: int | ir.Value) -> bool:
    """Whether it is -1, the size that a Reshape works out."""
    if isinstance(size, int):
        return size == OPEN
    known = size.const_value
    return known is not None and known.numpy().tolist() == [OPEN]


def _sizes(reshape: ir.Node) -> list[Any] | None:
    """The four sizes that a Reshape makes, as numbers or as the values that hold them."""
    target = reshape.inputs[1]
    if target is None:
        return None
    producer = target.producer()
    known = target.const_value
    if producer is not None and producer.op_type == "Concat":
        sizes: list[Any] = list(producer.inputs)
    else:
        sizes = [] if known is None else known.numpy().tolist()
    return sizes if len(sizes) == len(HEADS_APART) else None


def _parts_heads(node: ir.Node | None) -> bool:
    """Whether it is a transpose of rows and heads."""
    if node is None or node.op_type != "Transpose" or node.domain:
        return False
    order = node.attributes.get("perm")
    return order is not None and tuple(order.as_ints()) == HEADS_APART

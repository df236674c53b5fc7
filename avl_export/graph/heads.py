"""One node for what lies between linears and attention, for runtimes that have a kernel for it.

transformers' layers make heads of rows, norm some, turn them by RoPE, and make rows of what
attention gives: a dozen small nodes a layer, which at one token a step take as long as attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from avl_plugins.bodies.heads_body import heads_function
from avl_plugins.bodies.linear_ops import LINEARS
from avl_plugins.schema import (
    BLOCK_CACHE_ATTENTION,
    DOMAIN,
    HEAD_OPS,
    JOINED_HEADS,
    NORMED_ROTARY_HEADS,
    ROTARY_HEADS,
    SPLIT_CACHE_ATTENTION,
    VERSION,
    WINDOW_CACHE_ATTENTION,
)

ATTENTION = frozenset(
    op.name for op in (SPLIT_CACHE_ATTENTION, BLOCK_CACHE_ATTENTION, WINDOW_CACHE_ATTENTION)
)
_LINEARS = frozenset(op.name for op in LINEARS)
_APART = [0, 2, 1, 3]  # from [B, S, H, D] to [B, H, S, D], and back


@dataclass(frozen=True, slots=True)
class _Heads:
    """How heads [B, H, S, D] are made of rows.

    Attributes:
        rows: [B * S, H * D] that a linear makes.
        shape: of the rows with heads apart, [B, S, H, D].
        nodes: that make the heads, the last one first.
        turn: that turns them by RoPE, if one does.
        norm: that norms them before, if one does.
    """

    rows: ir.Value
    shape: ir.Value
    nodes: Sequence[ir.Node]
    turn: ir.Node | None
    norm: ir.Node | None

    @property
    def kind(self) -> tuple[object, ...]:
        """What queries and keys of one node have in common."""
        return self.shape, _turned_by(self.turn), None if self.norm is None else _epsilon(self.norm)


def join_heads(model: ir.Model) -> None:
    """Put RotaryHeads and JoinedHeads where graphs have several nodes for the same.

    Only beside linears that have kernels: rows of others may be in 16 bits. What is made otherwise
    stays, as heads that are gated or not turned do.
    """
    graph = model.graph
    used = set()
    for attention in [node for node in graph if node.op_type in ATTENTION]:
        op = _split(graph, attention)
        used |= {op} | {_join(graph, attention)}
    for made in HEAD_OPS:
        if made.name in used:
            body = ir.serde.deserialize_function(heads_function(made, model.opset_imports[""]))
            model.functions[body.identifier()] = body
            model.opset_imports[DOMAIN] = VERSION


def _split(graph: ir.Graph, attention: ir.Node) -> str | None:
    """The name of the op that now makes heads for a node of attention, if one does."""
    found = [_heads(value) for value in attention.inputs[:3]]
    q, k, v = found
    if q is None or k is None or v is None or q.turn is None or q.kind != k.kind:
        return None
    size = _head_size(q.shape)
    if size is None or v.shape is not q.shape or v.turn is not None or v.norm is not None:
        return None
    cos, sin = q.turn.inputs[1:3]
    op, inputs = ROTARY_HEADS, [q.rows, k.rows, v.rows, cos, sin]
    attributes: dict[str, int | float] = {
        "head_size": size,
        "interleaved": _integer(q.turn, "interleaved"),
        "rotated": _integer(q.turn, "rotary_embedding_dim"),
    }
    if q.norm is not None and k.norm is not None:
        op = NORMED_ROTARY_HEADS
        inputs += [q.norm.inputs[1], k.norm.inputs[1]]
        attributes["epsilon"] = _epsilon(q.norm)
    node = ir.node(op.name, inputs, attributes, domain=DOMAIN, num_outputs=3)
    graph.insert_before(attention, node)
    for one, made in zip((q, k, v), node.outputs, strict=True):
        _take(graph, one.nodes, made)
    _forget(graph, q.shape)
    return op.name


def _join(graph: ir.Graph, attention: ir.Node) -> str | None:
    """The same of the op that makes rows of what it gives."""
    apart = _only_reader(attention.outputs[0])
    if apart is None or not _is_transpose(apart):
        return None
    reshape = _only_reader(apart.outputs[0])
    if reshape is None or reshape.op_type != "Reshape":
        return None
    reader = _only_reader(reshape.outputs[0])
    shape = None if reshape.inputs[1] is None else reshape.inputs[1].const_value
    if reader is None or reader.op_type not in _LINEARS or shape is None:
        return None
    sizes = [int(n) for n in shape.numpy().reshape(-1)]
    if len(sizes) != 2 or sizes[0] != -1:  # a linear's rows hold all of a token's heads
        return None
    node = ir.node(JOINED_HEADS.name, [attention.outputs[0]], domain=DOMAIN)
    graph.insert_before(apart, node)
    _take(graph, [reshape, apart], node.outputs[0])
    return JOINED_HEADS.name


def _heads(value: ir.Value | None) -> _Heads | None:
    """How a value's heads are made, if this file knows it; none of its parts is read by others."""
    nodes: list[ir.Node] = []
    parts: dict[str, ir.Node] = {}
    while value is not None and (node := value.producer()) is not None:
        if nodes and (len(value.uses()) != 1 or value.is_graph_output()):
            return None
        kind = node.op_type
        known = {
            "RotaryEmbedding": not nodes and len(node.inputs) == 3,
            "RMSNormalization": _is_head_norm(node),
            "Transpose": _is_transpose(node),
            "Reshape": "Transpose" in parts,
        }
        if node.domain or not known.get(kind) or kind in parts:
            return None
        nodes.append(node)
        parts[kind] = node
        value = node.inputs[0]
        if kind == "Reshape":
            return _from_rows(value, nodes, parts)
    return None


def _from_rows(
    rows: ir.Value | None, nodes: Sequence[ir.Node], parts: dict[str, ir.Node]
) -> _Heads | None:
    shape = parts["Reshape"].inputs[1]
    if rows is None or shape is None or not _is_of_linear(rows):
        return None
    return _Heads(rows, shape, nodes, parts.get("RotaryEmbedding"), parts.get("RMSNormalization"))


def _is_of_linear(rows: ir.Value) -> bool:
    """Whether a linear of ours makes them; a bias may be added behind it."""
    maker = rows.producer()
    if maker is not None and maker.op_type == "Add":
        maker = None if maker.inputs[0] is None else maker.inputs[0].producer()
    return maker is not None and maker.op_type in _LINEARS


def _head_size(shape: ir.Value) -> int | None:
    """D of a shape [B, S, H, D] that a graph works out."""
    concat = shape.producer()
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 4:
        return None
    last = concat.inputs[-1]
    tensor = None if last is None else last.const_value
    return int(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None


def _turned_by(turn: ir.Node | None) -> tuple[object, ...]:
    if turn is None:
        return ()
    named = _integer(turn, "interleaved"), _integer(turn, "rotary_embedding_dim")
    return (*turn.inputs[1:3], *named)


def _take(graph: ir.Graph, nodes: Sequence[ir.Node], made: ir.Value) -> None:
    """Have `made` stand for what the first of `nodes` gives, and remove them."""
    before = nodes[0].outputs[0]
    made.name, made.type, made.shape = before.name, before.type, before.shape
    before.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove(nodes, safe=True)


def _forget(graph: ir.Graph, value: ir.Value | None) -> None:
    """Remove what makes a value that nobody reads any more."""
    node = None if value is None else value.producer()
    if node is None or any(one.uses() or one.is_graph_output() for one in node.outputs):
        return
    given = dict.fromkeys(node.inputs)
    graph.remove(node, safe=True)
    for one in given:
        _forget(graph, one)


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = [] if value.is_graph_output() else [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 else None


def _is_transpose(node: ir.Node) -> bool:
    order = node.attributes.get("perm")
    return node.op_type == "Transpose" and order is not None and list(order.as_ints()) == _APART


def _is_head_norm(node: ir.Node) -> bool:
    """Whether all heads are normed with the same weight [D]."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    shape = None if weight is None else weight.shape
    return shape is not None and len(shape) == 1 and _integer(node, "axis", -1) == -1


def _integer(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _epsilon(norm: ir.Node) -> float:
    attribute = norm.attributes.get("epsilon")
    return 1e-5 if attribute is None else attribute.as_float()

"""Decoder graphs that keep rows in another way, made of the one that keeps them as computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import onnx_ir as ir

from avl_plugins.bodies.kept_function import kept_attention_function
from avl_plugins.bodies.kept_reach import kept_reach_functions
from avl_plugins.bodies.restored_function import kept_restored_functions
from avl_plugins.graph_io import ACTIVE, MADE, Segment, Value, layer_of, named
from avl_plugins.schema import (
    BLOCK_CACHE_ATTENTION,
    BLOCK_OPS,
    COMPUTED,
    RESTORED_OPS,
    ROW_OPS,
    WINDOW_CACHE_ATTENTION,
    WINDOW_OPS,
    Op,
)

_BY_ROWS = (ROW_OPS, RESTORED_OPS, BLOCK_OPS, WINDOW_OPS)

_TYPES = {
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "int64": ir.DataType.INT64,
    "float16": ir.DataType.FLOAT16,
    "float32": ir.DataType.FLOAT,
    "T": ir.DataType.FLOAT,
}


def keep_rows(model: ir.Model, segment: Segment) -> None:
    """Have the finished graph of a segment keep its rows as `segment` says, in place.

    Weights stay where they are: the two graphs read the same ones.

    Args:
        segment: what the graph is to read and make; T is float32.
    """
    graph = model.graph
    by_name = {str(value.name): value for value in graph.inputs}
    inputs = [_input(value, by_name) for value in segment.inputs()]
    defaulted = [by_name[value.name] for value in segment.defaulted()]
    held = {str(value.name): value for value in (*inputs, *defaulted)}
    made: dict[str, ir.Value] = {}
    each = [(by_rows[COMPUTED.name], by_rows[segment.kept.name]) for by_rows in _BY_ROWS]
    ops = {as_computed.name: (as_computed, kept) for as_computed, kept in each}
    nodes = [node for node in graph if node.op_type in ops]
    for node in nodes:
        _replace(graph, node, held, segment, ops[node.op_type], made)
    others = {str(value.name): value for value in graph.outputs}
    graph.outputs[:] = [made.get(v.name) or others[v.name] for v in segment.outputs()]
    graph.inputs[:] = [*inputs, *defaulted]
    sizes = sorted({segment.dims.head_size(layer) for layer in segment.row_layers})
    of = segment.kept, sizes, model.opset_imports[""]
    functions = (
        kept_restored_functions(*of) if segment.restores else (kept_attention_function(*of),)
    )
    for reach in (BLOCK_CACHE_ATTENTION, WINDOW_CACHE_ATTENTION):
        if any(node.op_type == reach.name for node in nodes):
            functions += kept_reach_functions(segment.kept, reach, *of[1:])
    for function in functions:
        body = ir.serde.deserialize_function(function)
        model.functions[body.identifier()] = body


def replaced(graph: ir.Graph, node: ir.Node, op: Op, inputs: Sequence[ir.Value | None]) -> ir.Node:
    """Put another op of attention in a node's place; what that made are its first outputs."""
    attributes = [node.attributes[one.name] for one in op.attributes]
    outputs = len(op.outputs)
    made = ir.Node(op.domain, op.name, inputs, attributes, num_outputs=outputs, name=node.name)
    graph.insert_before(node, made)
    for before, after in zip(node.outputs, made.outputs, strict=False):
        after.name, after.type, after.shape = before.name, before.type, before.shape
        before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return made


def _input(value: Value, before: dict[str, ir.Value]) -> ir.Value:
    """The graph's input of this name, as it is or of another type."""
    found = before.get(value.name)
    kept = ir.TensorType(_TYPES[value.dtype])
    if found is not None and found.type == kept:
        return found
    return ir.Value(name=value.name, type=kept, shape=ir.Shape(value.shape))


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    held: dict[str, ir.Value],
    segment: Segment,
    ops: tuple[Op, Op],
    found: dict[str, ir.Value],
) -> None:
    """Put the op that keeps rows so in a node's place; `found` gets new outputs by graph names.

    Nodes come in the order of layers, so that the first one of some rows is their own layer's.
    """
    as_computed, op = ops
    given = dict(zip((v.name for v in as_computed.inputs), node.inputs, strict=True))
    layer = layer_of(str(cast("ir.Value", given[ACTIVE.keys]).name))
    # New rows as computed are no outputs any more, and their names are those of what is kept.
    for kind in (MADE.keys, MADE.values):
        cast("ir.Value", given[kind]).name = f"computed_{named(kind, layer)}"
    inputs = [held.get(named(v.name, layer)) or given[v.name] for v in op.inputs]
    outputs = {value.name: value for value in segment.outputs([layer])}
    made = replaced(graph, node, op, inputs)
    kinds = MADE.planes(segment.kept)
    for kind, after in zip(kinds, made.outputs[len(node.outputs) :], strict=True):
        value = outputs[named(kind, layer)]
        if value.name in found:  # of a layer that reads these rows
            continue
        after.name = value.name
        after.type, after.shape = ir.TensorType(_TYPES[value.dtype]), ir.Shape(value.shape)
        found[value.name] = after

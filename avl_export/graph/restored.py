"""Decoder graphs whose attention takes RESTORE's bias (arXiv 2606.01711), made of others."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from avl_export.checkpoint.supported import FamilyError
from avl_export.families import Family
from avl_export.graph.rows import replaced
from avl_plugins.bodies.restored_function import restored_functions
from avl_plugins.graph_io import ACTIVE, FULL, PARKED, ROW_STANDING, Segment, layer_of, named
from avl_plugins.schema import PLUGIN_ATTRIBUTES, RESTORED_CACHE_ATTENTION, SPLIT_CACHE_ATTENTION
from avl_runtime.package.manifest import CAUSAL

_NEARNESS = "rope.nearness"


def nearness(family: Family) -> NDArray[np.float32]:
    """[axes, context]: the part of D that each axis of positions has at each distance.

    D is the mean of cos(distance x frequency) over all frequencies of RoPE, 1 in the same place.
    """
    rope, context = family.decoder.rope, family.decoder.dims.max_positions
    frequencies, axis_of = rope.inv_freq.double().numpy(), rope.axis_of.numpy()
    found = np.zeros((rope.axes, context), np.float64)
    distances = np.arange(context)
    for frequency, axis in zip(frequencies, axis_of, strict=True):
        found[axis] += np.cos(distances * frequency)
    return (found / len(frequencies)).astype(np.float32)


def check_restored(family: Family) -> None:
    """Refuse a family whose attention is not given the bias.

    Raises:
        FamilyError: it is none whose layers all attend to all tokens before, by one RoPE.
    """
    decoder = family.decoder
    plain = all(kind == FULL.name for kind in decoder.kinds) and family.traits.reach == CAUSAL
    if not plain or len(decoder.ropes) > 1:
        raise FamilyError(
            f"--restore: expected a decoder whose layers all attend to all tokens before, by one "
            f"RoPE, found another, {family.name}'s; leave it out"
        )


def restore(
    model: ir.Model, segment: Segment, table: NDArray[np.float32], heads: tuple[int, int]
) -> None:
    """Have the finished graph of a segment read where rows stand, in place.

    Args:
        segment: what the graph is to read.
        table: of `nearness`.
        heads: query and KV heads.
    """
    graph = model.graph
    held = {str(value.name): value for value in graph.inputs}
    defaulted = [held[value.name] for value in segment.defaulted()]
    for value in segment.inputs():
        if value.name not in held:
            kind = ir.TensorType(ir.DataType.INT64)
            held[value.name] = ir.Value(name=value.name, type=kind, shape=ir.Shape(value.shape))
    tensor = ir.tensor(table, name=_NEARNESS)
    near = ir.Value(name=_NEARNESS, const_value=tensor, type=ir.TensorType(tensor.dtype))
    near.shape = ir.Shape(table.shape)
    graph.initializers[_NEARNESS] = near
    names = [value.name for value in SPLIT_CACHE_ATTENTION.inputs]
    for node in [node for node in graph if node.op_type == SPLIT_CACHE_ATTENTION.name]:
        keys = cast("ir.Value", node.inputs[names.index(ACTIVE.keys)])
        standing = [named(place.standing, layer_of(str(keys.name))) for place in (ACTIVE, PARKED)]
        more = [near, held[ROW_STANDING], *(held[name] for name in standing)]
        plugin = [node.attributes[name] for name in PLUGIN_ATTRIBUTES]
        made = replaced(graph, node, RESTORED_CACHE_ATTENTION, [*node.inputs, *more])
        made.attributes.update({attribute.name: attribute for attribute in plugin})
    graph.inputs[:] = [*(held[value.name] for value in segment.inputs()), *defaulted]
    for proto in restored_functions(len(table), model.opset_imports[""], heads):
        body = ir.serde.deserialize_function(proto)
        model.functions[body.identifier()] = body

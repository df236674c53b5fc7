"""A package's graphs made ready for a builder: attention as plugin or as plain nodes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from avl_plugins.bodies.compiled_experts import compiled_experts_function
from avl_plugins.bodies.compiled_function import compiled_functions
from avl_plugins.graph_io import (
    ACTIVE,
    ANSWERED,
    LOGITS_FROM,
    MASSES,
    MOST_WEIGHTINGS,
    WEIGHTINGS,
    blocks,
    is_cached_rows,
    kind_of,
    layer_of,
    shared,
    windowed,
)
from avl_plugins.kernels.catalog import PLUGINS
from avl_plugins.schema import DOMAIN
from avl_runtime.package.dims import Dims
from avl_runtime.package.engine_sets import ROW_BLOCK

BITS = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.INT4: 4,
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A graph as the builder shall read it.

    Attributes:
        inputs: shapes by name; a size that may change has a name.
        operators: how many nodes of each operator there are.
        attentions: names of the nodes that are to become plugins.
        lengths: names of standard attention nodes that are given lengths of keys.
        weight_bytes: of the weights in the precision that the graph computes in.
        int4_bytes: of those that are codes of 4 bits.
        row_block: as in the manifest.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, tuple[int | str, ...]]
    operators: Mapping[str, int]
    attentions: tuple[str, ...]
    lengths: tuple[str, ...]
    weight_bytes: int
    int4_bytes: int
    row_block: int


def prepare(data: bytes, dims: Dims, plugins: bool) -> Prepared:
    """Make the graph in `data` ready; weights stay where they are.

    Bodies, those for compilers where an op has one, take the place of all nodes of avl's ops that
    are no plugins. Without plugins cached rows come in blocks.
    """
    model = onnx.load_model_from_string(data)
    decoder = any(kind_of(value.name) in MASSES for value in model.graph.output)
    # Builders know no kernel of ours.
    kept = {op.name for op in PLUGINS.values()} if plugins else set()
    called = {node.op_type for node in model.graph.node if node.domain == DOMAIN} - kept
    row_block = 1
    if decoder:
        _share_sizes(model.graph)
        opset = next(one.version for one in model.opset_import if one.domain == "")
        heads = (dims.num_heads, dims.num_kv_heads)
        attention = compiled_functions(opset, heads, dims.position_axes)
        made = (*attention, compiled_experts_function(opset))
        _replace(model, [one for one in made if not plugins or one.name in called])
    bodies = [(DOMAIN, name) for name in sorted(called)]
    model = onnx.inliner.inline_selected_functions(model, bodies)
    if decoder and not plugins:
        model = onnx.inliner.inline_local_functions(model)
        row_block = ROW_BLOCK
        _block_rows(model.graph)
    graph = model.graph
    initializers = {tensor.name for tensor in graph.initializer}
    sizes = _weight_bytes(graph)
    return Prepared(
        model=model,
        inputs={v.name: _shape(v) for v in graph.input if v.name not in initializers},
        operators=Counter(node.op_type for node in graph.node),
        attentions=tuple(_name(node) for node in graph.node if node.domain == DOMAIN),
        lengths=tuple(
            _name(node)
            for node in graph.node
            if node.op_type == "Attention" and len(node.input) > 6 and node.input[6]
        ),
        weight_bytes=sum(sizes.values()),
        int4_bytes=sizes.get(onnx.TensorProto.INT4, 0),
        row_block=row_block,
    )


def _replace(model: onnx.ModelProto, functions: Sequence[onnx.FunctionProto]) -> None:
    """Put `functions` in the place of those of their names."""
    names = {(one.domain, one.name) for one in functions}
    others = [one for one in model.functions if (one.domain, one.name) not in names]
    del model.functions[:]
    model.functions.extend((*others, *functions))


def _share_sizes(graph: onnx.GraphProto) -> None:
    """One name for the rows of all layers' caches, which are equal in a segment.

    Layers with a window have other numbers of them, and one name for these. A compiler then works
    sizes and masks out once, and not for every layer anew. Engines are always given both weightings
    of rows, and give logits of the last one.
    """
    sliding = {layer_of(v.name) for v in graph.input if kind_of(v.name) == ACTIVE.positions}
    taken = [value for value in graph.input if value.name != LOGITS_FROM]
    del graph.input[:]
    graph.input.extend(taken)
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == WEIGHTINGS:
                dim.dim_value = MOST_WEIGHTINGS
            elif dim.dim_param == ANSWERED:
                dim.dim_value = 1
            elif (common := shared(dim.dim_param)) != dim.dim_param:
                slides = layer_of(value.name) in sliding
                dim.dim_param = windowed(common) if slides else common


def _block_rows(graph: onnx.GraphProto) -> None:
    """Let cached rows come as [B, heads, rows / ROW_BLOCK, ROW_BLOCK, width].

    Positions of them come as [B, rows / ROW_BLOCK, ROW_BLOCK]. A compiler sees that their number is
    a multiple, and copies none to make it one.
    """
    rows_at = {v.name: 2 for v in graph.input if is_cached_rows(v.name)}
    rows_at |= {v.name: 1 for v in graph.input if kind_of(v.name) == ACTIVE.positions}
    names = {name: f"{name}.rows" for name in rows_at}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    nodes, shapes = [], {}
    for value in graph.input:
        if value.name in names:
            axis, shape = rows_at[value.name], _shape(value)
            before, rows, behind = shape[:axis], shape[axis], shape[axis + 1 :]
            kind = value.type.tensor_type.elem_type
            flat = ".".join(("avl.rows", *map(str, behind)))
            blocked = [*before, blocks(str(rows)), ROW_BLOCK, *behind]
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, blocked))
            nodes.append(helper.make_node("Reshape", [value.name, flat], [names[value.name]]))
            shapes[flat] = _int64(*(0 for _ in before), -1, *map(int, behind))
    for flat, made in sorted(shapes.items()):
        graph.initializer.append(numpy_helper.from_array(made, flat))
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)


def _weight_bytes(graph: onnx.GraphProto) -> Counter[int]:
    """Bytes of initializers by type; one that is only cast counts as what it is cast to."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    sizes: Counter[int] = Counter()
    for tensor in graph.initializer:
        kind = tensor.data_type
        casts = [node for node in readers.get(tensor.name, []) if node.op_type == "Cast"]
        if casts and len(casts) == len(readers[tensor.name]):
            kind = next(a.i for a in casts[0].attribute if a.name == "to")
        sizes[kind] += math.prod(tensor.dims) * BITS.get(kind, 64) // 8
    return sizes


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _name(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type} that makes {node.output[0]}"


def _int64(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)

"""Bind a graph's initializers in place to the checkpoint's safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import onnx_ir as ir
import torch
from torch import nn

from avl_export.checkpoint.weight_map import WeightMap
from avl_export.graph.experts import bind_stack, is_stack, swap
from avl_export.graph.trace import Traced
from avl_export.quantize.nodes import bind_quantized
from avl_runtime.package.package import Embedding

DATA_TYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}


def embedding(weights: WeightMap, model: nn.Module, table: nn.Module) -> Embedding:
    """Where the runtime reads rows of a table."""
    weight = table.get_parameter("weight")
    name = next(n for n, p in model.named_parameters() if p is weight)
    rows, columns = weight.shape
    if name in weights.rows:
        codes = weights.rows[name]
        return Embedding(
            file=codes.location,
            offset=codes.codes.offset,
            dtype="I4" if codes.bits == 4 else "I8",
            shape=(rows, columns),
        )
    placed = weights.place(name, (rows, columns))
    return Embedding(
        file=placed.location,
        offset=placed.record.offset,
        dtype=cast(Literal["F32", "F16", "BF16"], placed.record.dtype),
        shape=(rows, columns),
    )


def bind(
    traced: Traced,
    weights: WeightMap,
    constants: Mapping[str, torch.Tensor],
    base: Path,
) -> None:
    """Point every parameter of the traced graph at its bytes.

    A tensor stored in another dtype than the graph computes in stays bound in place, followed by
    one Cast. Buffers in `constants` are written into the graph.

    Args:
        base: the folder that the locations are relative to.

    Raises:
        CheckpointError: see `WeightMap.place`.
    """
    graph = traced.model.graph
    for own, value in list(graph.initializers.items()):
        name = traced.parameters.get(own)
        if name is None:
            continue
        graph.initializers.pop(own)
        value.name = name
        if name in constants:
            value.const_value = ir.tensor(constants[name].numpy(), name=name)
            graph.initializers[name] = value
            continue
        if name in weights.linears:
            bound = bind_stack if is_stack(value) else bind_quantized
            bound(graph, value, name, weights.linears[name], base)
            value.const_value = None
            continue
        shape = tuple(n for n in value.shape or () if isinstance(n, int))
        placed = weights.place(name, shape)
        stored = DATA_TYPES[placed.record.dtype]
        if placed.swapped:
            swap(value)
            *lead, outputs, inputs = shape
            shape = (*lead, inputs, outputs)
        if is_stack(value):
            value.dtype, value.shape = stored, ir.Shape(shape)
        source = value if stored == value.dtype else _cast(graph, value, stored)
        source.const_value = ir.ExternalTensor(
            placed.location,
            placed.record.offset,
            placed.record.nbytes,
            stored,
            shape=ir.Shape(shape),
            name=name,
            base_dir=base,
        )
        graph.initializers[name] = source


def _cast(graph: ir.Graph, value: ir.Value, stored: ir.DataType) -> ir.Value:
    """A new initializer value of dtype `stored`, cast to the dtype of `value` for all its users."""
    if value.dtype is None:
        raise RuntimeError(f"{value.name}: an initializer without a dtype")
    source = ir.Value(name=value.name, shape=value.shape, type=ir.TensorType(stored))
    node = ir.node("Cast", [source], {"to": value.dtype})
    node.outputs[0].name = f"{value.name}.cast"
    node.outputs[0].shape = value.shape
    node.outputs[0].type = ir.TensorType(value.dtype)
    value.replace_all_uses_with(node.outputs[0])
    value.const_value = None
    graph.insert_before(graph[0], node)
    return source

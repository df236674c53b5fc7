"""Codes and scales in graphs, and DequantizeLinear in front of a linear layer."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from avl_export.checkpoint.places import QuantizedPlace
from avl_export.checkpoint.safetensors_header import TensorRecord

CODES = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
SCALES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}


def bind_quantized(
    graph: ir.Graph, weight: ir.Value, name: str, place: QuantizedPlace, base: Path
) -> None:
    """Let every Gemm(transB=1) that reads `weight` [outputs, inputs] read codes instead.

    Gemm then takes DequantizeLinear's [inputs, outputs]. Only blocks along the first of these are
    fused into MatMulNBits, and only if no second node reads the same codes or scales.

    Args:
        base: the folder that the place's location is relative to.
    """
    outputs, inputs = place.shape
    sizes, codes, location = [inputs, outputs], CODES[place.bits], place.location
    scale_sizes = [outputs] if place.block is None else [inputs // place.block, outputs]
    tensors = [
        (f"{name}.int{place.bits}", codes, sizes, place.codes),
        (f"{name}.scale", SCALES[place.scales.dtype], scale_sizes, place.scales),
    ]
    if place.zeros is not None:
        tensors.append((f"{name}.zero_point", codes, scale_sizes, place.zeros))
    values = [external(graph, *tensor, location, base) for tensor in tensors]
    attributes = {"axis": 1} if place.block is None else {"axis": 0, "block_size": place.block}
    for user, index in list(weight.uses()):
        flipped = user.attributes.get("transB")
        if user.op_type != "Gemm" or index != 1 or flipped is None or flipped.as_int() != 1:
            raise RuntimeError(f"{name}: a quantized weight read by {user.op_type}")
        node = ir.node("DequantizeLinear", values, attributes)
        node.outputs[0].name = f"{name}.dequantized"
        node.outputs[0].shape = ir.Shape(sizes)
        node.outputs[0].type = weight.type
        graph.insert_before(user, node)
        user.replace_input_with(1, node.outputs[0])
        del user.attributes["transB"]


def external(
    graph: ir.Graph,
    name: str,
    dtype: ir.DataType,
    sizes: list[int],
    record: TensorRecord,
    location: str,
    base: Path,
) -> ir.Value:
    """A new initializer of a graph whose bytes lie in the file `location` of the folder `base`."""
    value = ir.Value(name=name, shape=ir.Shape(sizes), type=ir.TensorType(dtype))
    value.const_value = ir.ExternalTensor(
        location,
        record.offset,
        record.nbytes,
        dtype,
        shape=ir.Shape(sizes),
        name=name,
        base_dir=base,
    )
    graph.initializers[name] = value
    return value

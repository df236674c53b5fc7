"""How large the arrays inside an encoder's graph get, read off the graph itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from avl_plugins.graph_io import PIXELS

FUSED_HEAD = 256  # wider heads have no kernel for their attention, and neither has fp32
SCORE = 8  # bytes a score that is computed by single steps


@dataclass(frozen=True, slots=True)
class EncoderSize:
    """What the largest arrays of an encoder depend on.

    Attributes:
        patch: numbers of `pixel_values` that make one row.
        widest: numbers of the widest row that a product of matrices makes.
        parts: into how many the queries of attention over whole frames are divided, 0 where no
            scores are spelt out.
        heads, head_dim: of attention that is one node, 0 where there is none.
    """

    patch: int
    widest: int
    parts: int
    heads: int = 0
    head_dim: int = 0

    def scratch(self, pixels: Sequence[int], item: int) -> int:
        """Bytes that an engine takes for the largest `pixels`, a shape of `pixel_values`.

        Fitted to what TensorRT-RTX 1.7 reports of encoders of real width: 0.9 to 2.1 times that.
        """
        rows = math.prod(pixels) // self.patch
        frames, scores = pixels[0], 0
        if self.parts:
            scores = 12 * frames * (rows // frames) ** 2 // self.parts
        elif item == 4 or self.head_dim > FUSED_HEAD:
            scores = SCORE * frames * self.heads * (rows // frames) ** 2
        return (8 << 20) + 5 * rows * self.widest * item // 2 + scores


def encoder_size(graph: onnx.GraphProto) -> EncoderSize | None:
    """Sizes of an encoder's graph, None for another graph."""
    inputs = {value.name: value for value in graph.input}
    if PIXELS not in inputs:
        return None
    weights = {tensor.name: tensor for tensor in graph.initializer}
    patch = inputs[PIXELS].type.tensor_type.shape.dim[-1].dim_value
    widths = [1]
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Conv":
            patch = math.prod(_dims(node.input[1], weights, made_by)[1:])
        if node.op_type in ("MatMul", "Gemm"):
            dims = _dims(node.input[1], weights, made_by)
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            if dims:
                widths.append(dims[0] if transposed else dims[-1])
    parts = _parts(graph, weights, made_by)
    return EncoderSize(patch, max(widths), parts, *_heads(graph, weights, made_by))


def _dims(
    name: str, weights: Mapping[str, onnx.TensorProto], made_by: Mapping[str, onnx.NodeProto]
) -> list[int]:
    """Dimensions of a weight, whatever was done to its type; nothing of what is computed."""
    turned = False
    while name not in weights:
        node = made_by.get(name)
        if node is None or node.op_type not in ("Cast", "Transpose", "DequantizeLinear"):
            return []
        turned ^= node.op_type == "Transpose"
        name = node.input[0]
    dims = list(weights[name].dims)
    return dims[::-1] if turned else dims


def _parts(
    graph: onnx.GraphProto,
    weights: Mapping[str, onnx.TensorProto],
    made_by: Mapping[str, onnx.NodeProto],
) -> int:
    """Queries [T, P, C] are divided by a reshape to [0, parts, -1, C]."""
    for node in graph.node:
        if node.op_type == "Reshape":
            shape = _numbers(node.input[1], weights, made_by)
            if len(shape) == 4 and shape[0] == 0 and shape[2] == -1:
                return shape[1]
    return 0


def _heads(
    graph: onnx.GraphProto,
    weights: Mapping[str, onnx.TensorProto],
    made_by: Mapping[str, onnx.NodeProto],
) -> tuple[int, int]:
    """Number and size of heads: the scale of scores is 1 / sqrt(size), norms are as wide as all."""
    scales = [
        one.f
        for node in graph.node
        if node.op_type == "Attention"
        for one in node.attribute
        if one.name == "scale"
    ]
    norms = [
        _dims(node.input[1], weights, made_by)
        for node in graph.node
        if node.op_type == "LayerNormalization"
    ]
    if not scales or not norms or scales[0] <= 0 or len(norms[0]) != 1:
        return 0, 0
    head_dim = round(scales[0] ** -2)
    return norms[0][0] // head_dim, head_dim


def _numbers(
    name: str, weights: Mapping[str, onnx.TensorProto], made_by: Mapping[str, onnx.NodeProto]
) -> list[int]:
    """A small constant."""
    found: list[int] = []
    if name in weights and weights[name].data_location != onnx.TensorProto.EXTERNAL:
        found = numpy_helper.to_array(weights[name]).ravel().tolist()
    elif name in made_by and made_by[name].op_type == "Constant":
        value = onnx.helper.get_attribute_value(made_by[name].attribute[0])
        array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        found = [int(number) for number in array]
    return found

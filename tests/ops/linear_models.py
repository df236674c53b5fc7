"""Models of one node for linears."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from avl_plugins.bodies.function import linear_function
from avl_plugins.schema import DOMAIN, Op


def linear_model(
    op: Op,
    inputs: int,
    tensors: Sequence[onnx.TensorProto],
    outputs: Sequence[int],
    *,
    fed: str | None = None,
    **attributes: int,
) -> onnx.ModelProto:
    """x [rows, inputs] through `op`, whose other inputs are `tensors`, all but `fed` constant."""

    def rows(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])

    names = [value.name for value in op.inputs]
    products = [value.name for value in op.outputs]
    given = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in tensors
        if tensor.name == fed
    ]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(op.name, names, products, domain=DOMAIN, **attributes)],
            "linear",
            [rows("x", inputs), *given],
            [rows(name, width) for name, width in zip(products, outputs, strict=True)],
            [tensor for tensor in tensors if tensor.name != fed],
        ),
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)],
        functions=[linear_function(op, 23)],
        ir_version=11,
    )

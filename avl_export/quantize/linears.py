"""One node for a linear layer with quantized weights, for runtimes that have a kernel for it."""

from __future__ import annotations

import onnx_ir as ir

from avl_plugins.function import quantized_linear_function
from avl_plugins.schema import (
    DOMAIN,
    QUANTIZED_LINEAR,
    QUANTIZED_LINEAR_WITH_ZEROS,
    QUANTIZED_LINEARS,
    VERSION,
)

INPUTS_MULTIPLE = 32  # of what shares a scale: no kernel has smaller blocks


def join_linears(model: ir.Model) -> None:
    """Let QuantizedLinear take the place of every DequantizeLinear that one Gemm alone reads.

    A bias becomes an Add of its own. Scales that are not float32 and sizes that kernels do not take
    stay as they are.
    """
    graph, used = model.graph, set()
    for gemm in [node for node in graph if node.op_type == "Gemm"]:
        weight = gemm.inputs[1]
        codes = None if weight is None else weight.producer()
        if codes is None or codes.op_type != "DequantizeLinear" or not _fits(codes):
            continue
        used.add(_replace(graph, gemm, codes))
    for op in QUANTIZED_LINEARS:
        if op.name in used:
            body = quantized_linear_function(op, model.opset_imports[""])
            function = ir.serde.deserialize_function(body)
            model.functions[function.identifier()] = function
            model.opset_imports[DOMAIN] = VERSION


def _fits(dequantize: ir.Node) -> bool:
    codes, scales = dequantize.inputs[:2]
    if codes is None or scales is None or codes.shape is None:
        return False
    inputs, outputs = codes.shape.numpy()
    return (
        scales.dtype == ir.DataType.FLOAT
        and (_block_size(dequantize) or inputs) % INPUTS_MULTIPLE == 0
        and outputs % 2 == 0
        and len(dequantize.outputs[0].uses()) == 1
    )


def _block_size(dequantize: ir.Node) -> int:
    attribute = dequantize.attributes.get("block_size")
    return 0 if attribute is None else attribute.as_int()


def _replace(graph: ir.Graph, gemm: ir.Node, dequantize: ir.Node) -> str:
    """The name of the op that takes the place of both."""
    plain = len(dequantize.inputs) == 2  # codes and scales
    op = QUANTIZED_LINEAR if plain else QUANTIZED_LINEAR_WITH_ZEROS
    axis = dequantize.attributes["axis"].as_int()
    linear = ir.node(
        op.name,
        [gemm.inputs[0], *dequantize.inputs],
        {"axis": axis, "block_size": _block_size(dequantize)},
        domain=DOMAIN,
    )
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    nodes = [linear] if bias is None else [linear, ir.node("Add", [linear.outputs[0], bias])]
    old, new = gemm.outputs[0], nodes[-1].outputs[0]
    linear.outputs[0].name = f"{old.name}.product"
    new.name, new.shape, new.type = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.insert_before(gemm, nodes)
    graph.remove([gemm, dequantize], safe=True)
    return op.name

"""One node for a linear layer with quantized weights, for runtimes that have a kernel for it."""

from __future__ import annotations

import onnx_ir as ir

from avl_plugins.function import quantized_linear_function
from avl_plugins.schema import DOMAIN, QUANTIZED_LINEAR

INPUTS_MULTIPLE = 32  # of what shares a scale: no kernel has smaller blocks


def join_linears(model: ir.Model) -> None:
    """Let QuantizedLinear take the place of every DequantizeLinear that one Gemm alone reads.

    A bias becomes an Add of its own. Codes with zero points, scales that are not float32 and sizes
    that kernels do not take stay as they are.
    """
    graph, found = model.graph, False
    for gemm in [node for node in graph if node.op_type == "Gemm"]:
        weight = gemm.inputs[1]
        codes = None if weight is None else weight.producer()
        if codes is None or codes.op_type != "DequantizeLinear" or not _fits(codes):
            continue
        _replace(graph, gemm, codes)
        found = True
    if found:
        body = ir.serde.deserialize_function(quantized_linear_function(model.opset_imports[""]))
        model.functions[body.identifier()] = body
        model.opset_imports[DOMAIN] = QUANTIZED_LINEAR.version


def _fits(dequantize: ir.Node) -> bool:
    codes, scales, *zeros = dequantize.inputs
    if zeros or codes is None or scales is None or codes.shape is None:
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


def _replace(graph: ir.Graph, gemm: ir.Node, dequantize: ir.Node) -> None:
    axis = dequantize.attributes["axis"].as_int()
    linear = ir.node(
        QUANTIZED_LINEAR.name,
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

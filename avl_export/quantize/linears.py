"""One node for linear layers with quantized weights, for runtimes that have a kernel for it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import onnx_ir as ir

from avl_plugins.function import quantized_linear_function
from avl_plugins.schema import DOMAIN, QUANTIZED_LINEARS, VERSION

INPUTS_MULTIPLE = 32  # of what shares a scale: no kernel has smaller blocks
MOST_WEIGHTS = max(weights for weights, _ in QUANTIZED_LINEARS)


@dataclass(frozen=True, slots=True)
class _Linear:
    """A Gemm and the DequantizeLinear that it alone reads."""

    gemm: ir.Node
    dequantize: ir.Node

    @property
    def block_size(self) -> int:
        attribute = self.dequantize.attributes.get("block_size")
        return 0 if attribute is None else attribute.as_int()

    @property
    def has_zeros(self) -> bool:
        return len(self.dequantize.inputs) > 2  # codes and scales

    @property
    def kind(self) -> Hashable:
        """What linears of one node have in common."""
        return self.gemm.inputs[0], self.block_size, self.has_zeros

    def fits(self) -> bool:
        """Whether kernels take it."""
        codes, scales = self.dequantize.inputs[:2]
        if codes is None or scales is None or codes.shape is None:
            return False
        inputs, outputs = codes.shape.numpy()
        return (
            scales.dtype == ir.DataType.FLOAT
            and (self.block_size or inputs) % INPUTS_MULTIPLE == 0
            and outputs % 2 == 0
            and len(self.dequantize.outputs[0].uses()) == 1
        )


def join_linears(model: ir.Model) -> None:
    """Let a QuantizedLinear take the place of every DequantizeLinear and the Gemm that reads it.

    Up to three that multiply the same rows become one node, as q, k and v do. A bias becomes an Add
    of its own. Scales that are not float32 and sizes that kernels do not take stay as they are.
    """
    groups: dict[Hashable, list[_Linear]] = {}
    for gemm in model.graph:
        weight = gemm.inputs[1] if gemm.op_type == "Gemm" else None
        dequantize = None if weight is None else weight.producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        linear = _Linear(gemm, dequantize)
        if linear.fits():
            groups.setdefault(linear.kind, []).append(linear)
    used = set()
    for group in groups.values():
        for first in range(0, len(group), MOST_WEIGHTS):
            used.add(_replace(model.graph, group[first : first + MOST_WEIGHTS]))
    for op in QUANTIZED_LINEARS.values():
        if op.name in used:
            body = quantized_linear_function(op, model.opset_imports[""])
            function = ir.serde.deserialize_function(body)
            model.functions[function.identifier()] = function
            model.opset_imports[DOMAIN] = VERSION


def _replace(graph: ir.Graph, linears: list[_Linear]) -> str:
    """The name of the op whose node takes their place."""
    first = linears[0]
    op = QUANTIZED_LINEARS[len(linears), first.has_zeros]
    node = ir.node(
        op.name,
        [first.gemm.inputs[0], *(value for one in linears for value in one.dequantize.inputs)],
        {
            "axis": first.dequantize.attributes["axis"].as_int(),
            "block_size": first.block_size,
        },
        domain=DOMAIN,
        num_outputs=len(linears),
    )
    graph.insert_before(first.gemm, node)
    for one, product in zip(linears, node.outputs, strict=True):
        old, new = one.gemm.outputs[0], product
        bias = one.gemm.inputs[2] if len(one.gemm.inputs) > 2 else None
        if bias is not None:
            product.name = f"{old.name}.product"
            add = ir.node("Add", [product, bias])
            graph.insert_before(one.gemm, add)
            new = add.outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove([one.gemm, one.dequantize], safe=True)
    return op.name

"""Products of two linears, of which a function of the first gates the second: one node's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

GELUS = {"none": "GeluGate", "tanh": "TanhGeluGate"}


@dataclass(frozen=True, slots=True)
class Gate:
    """How the product of one Gemm gates that of another.

    Attributes:
        name: one of linear_ops.GATES.
        gate: the Gemm of whose product a function is taken.
        gated: the other.
        nodes: that compute the function and multiply, the last one first.
    """

    name: str
    gate: ir.Node
    gated: ir.Node
    nodes: Sequence[ir.Node]


def gate_of(gemm: ir.Node) -> Gate | None:
    """How a Gemm's product gates another's, if nothing else reads either."""
    found = _function(gemm.outputs[0])
    if found is None:
        return None
    name, nodes = found
    own = nodes[0].outputs[0]
    product = _only_reader(own)
    if product is None or product.op_type != "Mul" or product.outputs[0].is_graph_output():
        return None
    other = next((value for value in product.inputs if value is not own), None)
    gated = None if other is None else other.producer()
    if other is None or gated is None or gated.op_type != "Gemm" or _only_reader(other) is None:
        return None
    return Gate(name, gemm, gated, (product, *nodes))


def _function(product: ir.Value) -> tuple[str, Sequence[ir.Node]] | None:
    """The function that alone reads a product."""
    readers = [] if product.is_graph_output() else [use.node for use in product.uses()]
    if len(readers) == 1 and readers[0].op_type == "Gelu":
        kind = readers[0].attributes.get("approximate")
        return GELUS["none" if kind is None else kind.as_string()], readers
    if len(readers) != 2:
        return None
    for share, own in (readers, readers[::-1]):
        if (
            share.op_type == "Sigmoid"
            and own.op_type == "Mul"
            and _only_reader(share.outputs[0]) is own
        ):
            return "SiluGate", (own, share)
    return None


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = [] if value.is_graph_output() else [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 else None

"""What follows a linear and can become part of its node: a bias, and a function of the sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from avl_plugins.bodies.linear_ops import ADD_BIAS

GELUS = {"none": "AddBiasGelu", "tanh": "AddBiasTanhGelu"}
QUICK_GELU, SLOPE = "AddBiasQuickGelu", 1.702


@dataclass(frozen=True, slots=True)
class Ending:
    """How a linear ends.

    Attributes:
        name: one of linear_ops.ENDINGS.
        sums: what the function is taken of, if there is one.
        nodes: that compute it, the last one first.
    """

    name: str
    sums: ir.Value | None = None
    nodes: Sequence[ir.Node] = ()

    def take(self, graph: ir.Graph) -> None:
        """Remove the function's nodes: what they read is what they made now."""
        if self.sums is not None:
            self.nodes[0].outputs[0].replace_all_uses_with(self.sums)
            graph.remove(list(self.nodes), safe=True)


def bias_of(gemm: ir.Node) -> ir.Value | None:
    """A Gemm's bias if it has one number for each output; there may be a Cast behind it."""
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    if bias is None:
        return None
    maker = bias.producer()
    stored = maker.inputs[0] if maker is not None and maker.op_type == "Cast" else bias
    if stored is None or not stored.is_initializer() or stored.shape is None:
        return None
    return bias if len(stored.shape) == 1 else None


def ending_of(gemm: ir.Node) -> Ending:
    """How a Gemm with a bias ends; between it and the function there may be a Reshape."""
    sums = gemm.outputs[0]
    readers = _readers(sums)
    if len(readers) == 1 and readers[0].op_type == "Reshape":
        sums = readers[0].outputs[0]
        readers = _readers(sums)
    name, nodes = _function(sums, readers)
    if name is None or nodes[0].outputs[0].is_graph_output():
        return Ending(ADD_BIAS)
    return Ending(name, sums, nodes)


def _readers(value: ir.Value) -> list[ir.Node]:
    """None of a graph's output, which others read too."""
    return [] if value.is_graph_output() else [use.node for use in value.uses()]


def _function(sums: ir.Value, readers: list[ir.Node]) -> tuple[str | None, Sequence[ir.Node]]:
    if len(readers) == 1 and readers[0].op_type == "Gelu":
        kind = readers[0].attributes.get("approximate")
        return GELUS.get("none" if kind is None else kind.as_string()), readers
    if len(readers) != 2 or any(node.op_type != "Mul" for node in readers):
        return None, ()
    for steep, product in (readers, readers[::-1]):
        following = _readers(steep.outputs[0])
        if (
            _is_slope(_other(steep, sums))
            and len(following) == 1
            and following[0].op_type == "Sigmoid"
            and _readers(following[0].outputs[0]) == [product]
            and _other(product, sums) is following[0].outputs[0]
        ):
            return QUICK_GELU, (product, following[0], steep)
    return None, ()


def _other(product: ir.Node, factor: ir.Value) -> ir.Value | None:
    """What a Mul multiplies `factor` with."""
    one, another = product.inputs
    return another if one is factor else one


def _is_slope(value: ir.Value | None) -> bool:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return False
    return math.isclose(float(value.const_value.numpy().item()), SLOPE, rel_tol=1e-6)

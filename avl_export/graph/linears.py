"""One node for linears and what makes their weights, for runtimes that have a kernel for it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from avl_export.graph.endings import Ending, bias_of, ending_of
from avl_export.graph.gates import Gate, gate_of
from avl_export.quantize.blocks import SPAN
from avl_plugins.bodies.function import linear_function
from avl_plugins.bodies.linear_ops import (
    ADD_BIAS,
    FINISHED_LINEARS,
    GATED_LINEARS,
    LINEARS,
    LOGITS_LINEAR,
    PLAIN_LINEARS,
    QUANTIZED_LINEARS,
)
from avl_plugins.graph_io import LOGITS
from avl_plugins.schema import DOMAIN, VERSION, Op

PLAIN_MULTIPLE = 16  # inputs of a weight without scales are one where kernels take it
MOST_WEIGHTS = max(PLAIN_LINEARS)
WITHOUT_ZEROS, WITH_ZEROS = (
    {weights: op for (weights, has), op in QUANTIZED_LINEARS.items() if has == zeros}
    for zeros in (False, True)
)


@dataclass(frozen=True, slots=True)
class _Linear:
    """A Gemm, and the node that makes its weight and that it alone reads, if there is one.

    Attributes:
        tensors: what its weight is made of.
        ops: what may take their place, by the number of linears in one node.
        attributes: of that node.
    """

    gemm: ir.Node
    maker: ir.Node | None
    tensors: Sequence[ir.Value | None]
    ops: Mapping[int, Op]
    attributes: tuple[tuple[str, int], ...] = ()

    @property
    def kind(self) -> Hashable:
        """What linears of one node have in common."""
        return self.gemm.inputs[0], self.ops[1].name, self.attributes


def join_linears(model: ir.Model) -> None:
    """Let one node take the place of Gemms in float32 and of the nodes that make their weights.

    A DequantizeLinear becomes part of a QuantizedLinear, a Cast from 16 bits of a Linear, and so
    does a weight stored in float32; what ends in logits, of a LogitsLinear. Two of which one gates
    the other become one node with what they are read by; up to three others that multiply the same
    rows another, as q, k and v do. Biases become part of it where each
    has one, and what is taken of the sum of one alone (`endings`); else a bias becomes an Add of
    its own. Sizes that kernels do not take stay as they are.
    """
    groups: dict[Hashable, list[_Linear]] = {}
    for gemm in model.graph:
        linear = _linear(gemm) if gemm.op_type == "Gemm" else None
        if linear is not None:
            groups.setdefault(linear.kind, []).append(linear)
    used = set()
    for group in groups.values():
        for pair, gate in _gated_pairs(group):
            used.add(_replace_gated(model.graph, pair, gate))
        for first in range(0, len(group), MOST_WEIGHTS):
            used.add(_replace(model.graph, group[first : first + MOST_WEIGHTS]))
    for op in LINEARS:
        if op.name in used:
            body = linear_function(op, model.opset_imports[""])
            function = ir.serde.deserialize_function(body)
            model.functions[function.identifier()] = function
            model.opset_imports[DOMAIN] = VERSION


def _gated_pairs(group: list[_Linear]) -> list[tuple[tuple[_Linear, _Linear], Gate]]:
    """Linears of a group of which one gates another, which are taken out of the group."""
    found = []
    by_gemm = {one.gemm: one for one in group}
    for gemm, one in list(by_gemm.items()):
        gate = gate_of(gemm) if len(gemm.inputs) == 2 else None
        other = None if gate is None else by_gemm.get(gate.gated)
        if gate is None or other is None or other is one or len(gate.gated.inputs) > 2:
            continue
        if _sizes(one) != _sizes(other):
            continue
        found.append(((one, other), gate))
        group.remove(one)
        group.remove(other)
    return found


def _sizes(linear: _Linear) -> ir.Shape | None:
    weight = linear.tensors[0]
    return None if weight is None else weight.shape


def _linear(gemm: ir.Node) -> _Linear | None:
    """The linear that ends with a Gemm, if kernels take it."""
    weight = gemm.inputs[1]
    if weight is None:
        return None
    maker = weight.producer()
    if maker is None:
        return _plain(gemm, None, weight) if weight.dtype == ir.DataType.FLOAT else None
    if len(weight.uses()) > 1:
        return None
    if maker.op_type == "DequantizeLinear":
        return _quantized(gemm, maker)
    stored = maker.inputs[0]
    if (
        maker.op_type == "Cast"
        and stored is not None
        and maker.attributes["to"].as_int() == ir.DataType.FLOAT
        and stored.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    ):
        return _plain(gemm, maker, stored)
    return None


def _quantized(gemm: ir.Node, maker: ir.Node) -> _Linear | None:
    attribute = maker.attributes.get("block_size")
    block = 0 if attribute is None else attribute.as_int()
    codes, scales = maker.inputs[:2]
    if codes is None or codes.shape is None or len(codes.shape) != 2:
        return None
    inputs, outputs = codes.shape.numpy()
    if (
        scales is None
        or scales.dtype != ir.DataType.FLOAT
        or (block or inputs) % SPAN
        or outputs % 2
    ):
        return None
    attributes = (("axis", maker.attributes["axis"].as_int()), ("block_size", block))
    ops = WITH_ZEROS if len(maker.inputs) > 2 else WITHOUT_ZEROS  # beside codes and scales
    return _Linear(gemm, maker, maker.inputs, ops, attributes)


def _plain(gemm: ir.Node, maker: ir.Node | None, stored: ir.Value) -> _Linear | None:
    transposed = gemm.attributes.get("transB")
    if (
        not stored.is_initializer()
        or stored.shape is None
        or transposed is None
        or not transposed.as_int()
        or stored.shape.numpy()[-1] % PLAIN_MULTIPLE
    ):
        return None
    return _Linear(gemm, maker, [stored], {1: LOGITS_LINEAR} if _ends(gemm) else PLAIN_LINEARS)


def _ends(gemm: ir.Node) -> bool:
    """Whether it makes a decoder's logits, and nothing is added to them."""
    made = gemm.outputs[0]
    readers = [use.node for use in made.uses()]
    if len(readers) == 1 and readers[0].op_type == "Reshape":
        made = readers[0].outputs[0]
    return made.name == LOGITS and made.is_graph_output() and len(gemm.inputs) == 2


def _replace(graph: ir.Graph, linears: list[_Linear]) -> str:
    """The name of the op whose node takes their place."""
    first = linears[0]
    op = first.ops[len(linears)]
    biases = [bias_of(one.gemm) for one in linears]
    ending = Ending(ADD_BIAS)
    joins = None not in biases and (op.name, ADD_BIAS) in FINISHED_LINEARS
    if joins and len(linears) == 1:
        ending = ending_of(first.gemm)
    if joins:
        op = FINISHED_LINEARS[op.name, ending.name]
    tensors = [
        value
        for one, bias in zip(linears, biases, strict=True)
        for value in (*one.tensors, *([bias] if joins else []))
    ]
    node = ir.node(
        op.name,
        [first.gemm.inputs[0], *tensors],
        dict(first.attributes),
        domain=DOMAIN,
        num_outputs=len(linears),
    )
    graph.insert_before(first.gemm, node)
    for one, product in zip(linears, node.outputs, strict=True):
        old, new = one.gemm.outputs[0], product
        bias = one.gemm.inputs[2] if len(one.gemm.inputs) > 2 else None
        if bias is not None and not joins:
            product.name = f"{old.name}.product"
            add = ir.node("Add", [product, bias])
            graph.insert_before(one.gemm, add)
            new = add.outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove([one.gemm, *filter(None, [one.maker])], safe=True)
    ending.take(graph)
    return op.name


def _replace_gated(graph: ir.Graph, pair: tuple[_Linear, _Linear], gate: Gate) -> str:
    """The same of two linears, of whose products one is made."""
    first = pair[0]
    op = GATED_LINEARS[first.ops[2].name, gate.name]
    tensors = [value for one in pair for value in one.tensors]
    node = ir.node(op.name, [first.gemm.inputs[0], *tensors], dict(first.attributes), domain=DOMAIN)
    last = gate.nodes[0]
    old, new = last.outputs[0], node.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(last, node)
    old.replace_all_uses_with(new)
    makers = [one.maker for one in pair if one.maker is not None]
    graph.remove([*gate.nodes, *(one.gemm for one in pair), *makers], safe=True)
    return op.name

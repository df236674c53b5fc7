"""Linears as ops: a body of standard ops, whose place CPU kernels take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from avl_plugins.schema import Attribute, Op, Value


def _numbers(weights: int) -> list[str]:
    """How the names of several weights' tensors end."""
    return [""] if weights == 1 else [f"_{number}" for number in range(weights)]


def _products(weights: int) -> tuple[Value, ...]:
    return tuple(
        Value(f"y{number}", "T", ("rows", f"outputs{number}"), "a product")
        for number in _numbers(weights)
    )


_X = Value("x", "T", ("rows", "inputs"), "what is multiplied")


def _plain_linear(weights: int) -> Op:
    """A linear layer with weights as stored, or several that multiply the same x."""
    return Op(
        name="Linear" + f"{weights}" * (weights > 1),
        doc="y = x . float32(weight)^T for each weight; the cast loses nothing.",
        inputs=(
            _X,
            *(
                Value(f"weight{number}", "stored", (f"outputs{number}", "inputs"), "a checkpoint's")
                for number in _numbers(weights)
            ),
        ),
        outputs=_products(weights),
    )


# What it is for is said by its name, so that a host can ask its kernel for less.
LOGITS_LINEAR = dataclasses.replace(
    _plain_linear(1),
    name="LogitsLinear",
    doc=(
        "Linear whose products are logits. Where the host reads the largest of each row alone, a "
        "kernel may give -inf in place of the others."
    ),
)


def _quantized_linear(weights: int, zeros: bool) -> Op:
    """A linear layer with quantized weights, or several that multiply the same x."""

    def each(number: str) -> tuple[Value, ...]:
        table = (f"blocks{number}", f"outputs{number}")
        return (
            Value(f"codes{number}", "codes", ("inputs", table[1]), "in units of the scales"),
            Value(f"scales{number}", "T", table, "[outputs] with one scale an output"),
            Value(f"zero_points{number}", "codes", table, "codes that stand for 0, like scales"),
        )[: 3 if zeros else 2]

    return Op(
        name="QuantizedLinear" + f"{weights}" * (weights > 1) + "WithZeros" * zeros,
        doc=(
            "y = x . weight for each weight = (codes - zero_points) * scales. A kernel may round x "
            "to 8 bits, with one scale for inputs of a row that share one of the weight, or for "
            "fewer of them; or x and the weight to bf16."
        ),
        inputs=(
            _X,
            *(value for number in _numbers(weights) for value in each(number)),
        ),
        outputs=_products(weights),
        attributes=(
            Attribute("axis", "int", "as of DequantizeLinear: 0 with blocks, 1 with one scale"),
            Attribute("block_size", "int", "inputs that share a scale; 0: all of an output's"),
        ),
    )


# By how many weights there are:
PLAIN_LINEARS: Mapping[int, Op] = {weights: _plain_linear(weights) for weights in (1, 2, 3)}
# The same, and by whether they have zero points. Each is an op of its own, as ONNX Runtime fuses no
# body in which an input is left out.
QUANTIZED_LINEARS: Mapping[tuple[int, bool], Op] = {
    (weights, zeros): _quantized_linear(weights, zeros)
    for weights in (1, 2, 3)
    for zeros in (False, True)
}

ADD_BIAS = "AddBias"
# What may follow the products, as names of ops end with it. Functions of sums are GELU by the
# normal distribution or by tanh, as ONNX has them, and by the logistic function of 1.702 x.
ENDINGS: Mapping[str, str] = {
    ADD_BIAS: "y + bias",
    "AddBiasGelu": "gelu(y + bias)",
    "AddBiasTanhGelu": "tanh_gelu(y + bias)",
    "AddBiasQuickGelu": "quick_gelu(y + bias)",
}
# By which function of the first product the second may be gated, as names of ops end with it.
GATES: Mapping[str, str] = {
    "SiluGate": "silu(y_0) * y_1",
    "GeluGate": "gelu(y_0) * y_1",
    "TanhGeluGate": "tanh_gelu(y_0) * y_1",
}


def _finished(op: Op, ending: str) -> Op:
    """`op` with what follows its products; a bias comes behind each weight's tensors."""
    tensors = op.inputs[1:]
    each = len(tensors) // len(op.outputs)
    biases = [
        Value(f"bias{number}", "T", (f"outputs{number}",), "is added to every row")
        for number in _numbers(len(op.outputs))
    ]
    inputs = [_X]
    for at, bias in enumerate(biases):
        inputs += [*tensors[at * each : (at + 1) * each], bias]
    doc = f"{op.doc} What comes out is {ENDINGS[ending]}."
    return dataclasses.replace(op, name=op.name + ending, doc=doc, inputs=tuple(inputs))


# By the name of the op without, and the ending: several weights have only a bias each.
FINISHED_LINEARS: Mapping[tuple[str, str], Op] = {
    (op.name, ending): _finished(op, ending)
    for op in (*PLAIN_LINEARS.values(), *QUANTIZED_LINEARS.values())
    for ending in ENDINGS
    if ending == ADD_BIAS or len(op.outputs) == 1
}


def _gated(op: Op, gate: str) -> Op:
    """`op` with two weights of as many outputs, whose products become one."""
    doc = f"{op.doc} What comes out is {GATES[gate]}."
    made = Value("y", "T", ("rows", "outputs_0"), "the second product, gated by the first")
    return dataclasses.replace(op, name=op.name + gate, doc=doc, outputs=(made,))


# By the name of the op without, and the gate.
GATED_LINEARS: Mapping[tuple[str, str], Op] = {
    (op.name, gate): _gated(op, gate)
    for op in (PLAIN_LINEARS[2], QUANTIZED_LINEARS[2, False], QUANTIZED_LINEARS[2, True])
    for gate in GATES
}
LINEARS = (
    *(*PLAIN_LINEARS.values(), LOGITS_LINEAR, *QUANTIZED_LINEARS.values()),
    *(*FINISHED_LINEARS.values(), *GATED_LINEARS.values()),
)

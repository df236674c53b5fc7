"""Mixtures of experts: of many feed-forward parts each token goes through a few.

Shapes are named dimensions:

    S rows    C hidden size    E experts    K experts of a row    I intermediate size of an expert
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from avl_plugins.schema.ops import Attribute, Op, Value

_TRANS = "1: {what} [E, {outputs}, {inputs}], as Gemm's transB says; 0: [E, {inputs}, {outputs}]"
_SUM = (
    "y[s] is the sum over k of shares[s, k] * down_e(silu(gate_e(x[s])) * up_e(x[s])), e being "
    "chosen[s, k], with {weights}. Of gate_up an expert's first I outputs are its gate, the others "
    "up. Weights of experts that no row chose are not read."
)
_ROUNDED = (
    " A kernel may round what a weight is multiplied with to 8 bits, as QuantizedLinear's does."
)
_ROWS = (
    Value("x", "T", ("S", "C"), "rows"),
    Value("chosen", "int64", ("S", "K"), "each row's experts; what is there twice counts twice"),
    Value("shares", "T", ("S", "K"), "what each of them counts"),
)
_SUMS = (Value("y", "T", ("S", "C"), "sums"),)

SPARSE_EXPERTS = Op(
    name="SparseExperts",
    doc=_SUM.format(weights="weights as a checkpoint stores them, cast to x's type"),
    inputs=(
        *_ROWS,
        Value("gate_up", "stored", ("E", "M", "N"), "M, N: 2I, C, or C, 2I; see the attribute"),
        Value("down", "stored", ("E", "P", "Q"), "P, Q: C, I, or I, C"),
    ),
    outputs=_SUMS,
    attributes=(
        Attribute("gate_up_trans", "int", _TRANS.format(what="gate_up", outputs="2I", inputs="C")),
        Attribute("down_trans", "int", _TRANS.format(what="down", outputs="C", inputs="I")),
    ),
)


def _quantized(name: str, codes: Literal["int8", "uint8"], packed: str, doc: str) -> Op:
    return Op(
        name=name,
        doc=_SUM.format(weights="weights = codes * scales") + _ROUNDED,
        inputs=(
            *_ROWS,
            Value("gate_up", codes, ("E", "2I", f"C{packed}"), doc),
            Value("down", codes, ("E", "C", f"I{packed}"), doc),
            Value("gate_up_scales", "T", ("E", "2I", "B"), "of B blocks of neighbouring inputs"),
            Value("down_scales", "T", ("E", "C", "D"), "of D blocks"),
        ),
        outputs=_SUMS,
    )


# By the bits of a code. Inputs and their order up to the scales are SPARSE_EXPERTS'.
QUANTIZED_EXPERTS: Mapping[int, Op] = {
    4: _quantized(
        "SparseExpertsInt4", "uint8", "/2", "signed codes, an even input's in a byte's low half"
    ),
    8: _quantized("SparseExpertsInt8", "int8", "", "signed codes"),
}

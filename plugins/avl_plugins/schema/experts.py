"""Mixtures of experts: of many feed-forward parts each token goes through a few.

Shapes are named dimensions:

    S rows    C hidden size    E experts    K experts of a row    I intermediate size of an expert
"""

from __future__ import annotations

from avl_plugins.schema.ops import Attribute, Op, Value

_TRANS = "1: {what} [E, {outputs}, {inputs}], as Gemm's transB says; 0: [E, {inputs}, {outputs}]"

SPARSE_EXPERTS = Op(
    name="SparseExperts",
    doc=(
        "y[s] is the sum over k of shares[s, k] * down_e(silu(gate_e(x[s])) * up_e(x[s])), e being "
        "chosen[s, k], with weights as a checkpoint stores them, cast to x's type. Of gate_up an "
        "expert's first I outputs are its gate, the others up. Weights of experts that no row "
        "chose are not read."
    ),
    inputs=(
        Value("x", "T", ("S", "C"), "rows"),
        Value("chosen", "int64", ("S", "K"), "each row's experts, no one twice"),
        Value("shares", "T", ("S", "K"), "what each of them counts"),
        Value("gate_up", "stored", ("E", "M", "N"), "M, N: 2I, C, or C, 2I; see the attribute"),
        Value("down", "stored", ("E", "P", "Q"), "P, Q: C, I, or I, C"),
    ),
    outputs=(Value("y", "T", ("S", "C"), "sums"),),
    attributes=(
        Attribute("gate_up_trans", "int", _TRANS.format(what="gate_up", outputs="2I", inputs="C")),
        Attribute("down_trans", "int", _TRANS.format(what="down", outputs="C", inputs="I")),
    ),
)

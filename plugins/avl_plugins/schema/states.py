"""Ops of layers that keep a state from token to token, of one size whatever their number.

Shapes are named dimensions, as in `ops`:

    B batch    S new rows    C channels    K inputs that a convolution sees    J = K - 1
    Hk key heads of size Dk    Hv value heads of size Dv, Hv = G * Hk
"""

from __future__ import annotations

from dataclasses import replace

from avl_plugins.schema.ops import Op, Value

NORM_EPSILON = 1e-6  # added to the sum of squares of a query or key

SHORT_CONVOLUTION = Op(
    name="ShortConvolution",
    doc=(
        "A causal convolution of each channel by itself: y[b, s, c] is the sum over j of "
        "weight[c, j] * x[b, s - J + j, c], where the rows before the first are the state's. The "
        "new state is the last J of all rows."
    ),
    inputs=(
        Value("x", "T", ("B", "S", "C"), "new rows"),
        Value("conv_state", "T", ("B", "J", "C"), "the J rows before them, zeros at the begin"),
        Value("weight", "T", ("C", "K"), "of each channel, the newest input's last"),
    ),
    outputs=(
        Value("y", "T", ("B", "S", "C"), "the convolution"),
        Value("conv_new", "T", ("B", "J", "C"), "the state behind the new rows"),
    ),
)

SHORT_CONVOLUTION_SILU = replace(
    SHORT_CONVOLUTION,
    name=f"{SHORT_CONVOLUTION.name}Silu",
    doc=f"As {SHORT_CONVOLUTION.name}, and y is those sums z as z / (1 + exp(-z)).",
)
CONVOLUTIONS = (SHORT_CONVOLUTION, SHORT_CONVOLUTION_SILU)

GATED_DELTA_RULE = Op(
    name="GatedDeltaRule",
    doc=(
        "The gated delta rule (arXiv 2412.06464), in float32. Queries and keys are divided by the "
        "root of their sum of squares + 1e-6, queries by that of Dk too; value head h reads key "
        "head h // (Hv / Hk). Row by row, with S the state of a head: S becomes exp(decay) * S, "
        "then S + k (beta * (v - S^T k))^T, and the output is S^T q."
    ),
    inputs=(
        Value("q", "T", ("B", "S", "Hk", "Dk"), "queries"),
        Value("k", "T", ("B", "S", "Hk", "Dk"), "keys"),
        Value("v", "T", ("B", "S", "Hv", "Dv"), "values"),
        Value("decay", "float32", ("B", "S", "Hv"), "logarithms, at most 0"),
        Value("beta", "T", ("B", "S", "Hv"), "how much of a value replaces what was there"),
        Value("delta_state", "float32", ("B", "Hv", "Dk", "Dv"), "before them, zeros at the begin"),
    ),
    outputs=(
        Value("out", "T", ("B", "S", "Hv", "Dv"), "what queries find"),
        Value("delta_new", "float32", ("B", "Hv", "Dk", "Dv"), "the state behind the new rows"),
    ),
)

STATE_OPS = (*CONVOLUTIONS, GATED_DELTA_RULE)

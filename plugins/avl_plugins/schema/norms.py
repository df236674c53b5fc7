"""What lies between a decoder's parts: a part's result is added to the residual, which is normed.

Shapes are named dimensions:

    N hidden size
"""

from __future__ import annotations

from avl_plugins.schema.ops import Attribute, Op, Value

ADD_RMS_NORM = Op(
    name="AddRMSNorm",
    doc=(
        "The sum of two, and the sum divided by the root mean square of its row, times a weight: "
        "Add, then ONNX's RMSNormalization of the last axis."
    ),
    inputs=(
        Value("a", "T", ("rows", "N"), "is added to"),
        Value("b", "T", ("rows", "N"), "is added"),
        Value("weight", "T", ("N",), "of the norm"),
    ),
    outputs=(
        Value("sum", "T", ("rows", "N"), "a + b"),
        Value("normed", "T", ("rows", "N"), "the norm of each row of the sum"),
    ),
    attributes=(Attribute("epsilon", "float", "is added to the mean square"),),
)

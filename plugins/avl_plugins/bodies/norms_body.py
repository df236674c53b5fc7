"""AddRMSNorm as a function of standard ops (`schema.norms`)."""

from __future__ import annotations

import onnx

from avl_plugins.bodies.function import function_proto
from avl_plugins.schema import ADD_RMS_NORM

_BODY = """
    sum = Add (a, b)
    normed = RMSNormalization <axis = -1, epsilon: float = @epsilon> (sum, weight)
"""


def add_rms_norm_function(opset: int = 23) -> onnx.FunctionProto:
    """The op as a function; a model needs the same default `opset`."""
    return function_proto(ADD_RMS_NORM, _BODY, opset)

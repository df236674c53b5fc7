"""Ops between linears and attention as functions of standard ops (`schema.heads`)."""

from __future__ import annotations

import onnx

from avl_plugins.bodies.function import function_proto
from avl_plugins.schema import JOINED_HEADS, NORMED_ROTARY_HEADS, ROTARY_HEADS, Op

_SHAPE = """
    lead = Shape <start = 0, end = 2> (cos)
    rest = Constant <value_ints = [-1]> ()
    size = Constant <value_int: int = @head_size> ()
    last = Reshape (size, rest)
    shape = Concat <axis = 0> (lead, rest, last)
"""
_APART = """
    {x}_apart = Reshape ({x}, shape)
"""
_NORMED = """
    {x}_normed = RMSNormalization <axis = -1, epsilon: float = @epsilon> ({x}_apart, {x}_norm)
"""
_TURNED = """
    {x}_straight = Transpose <perm = [0, 2, 1, 3]> ({rows})
    {x}_heads = RotaryEmbedding <interleaved: int = @interleaved,
                                 rotary_embedding_dim: int = @rotated> ({x}_straight, cos, sin)
"""
_VALUES = """
    v_apart = Reshape (v, shape)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v_apart)
"""
_JOINED = """
    rest = Constant <value_ints = [-1]> ()
    count = Shape <start = 1, end = 2> (heads)
    size = Shape <start = 3, end = 4> (heads)
    width = Mul (count, size)
    shape = Concat <axis = 0> (rest, width)
    apart = Transpose <perm = [0, 2, 1, 3]> (heads)
    joined = Reshape (apart, shape)
"""


def _rotary(norms: bool) -> str:
    parts = [_SHAPE]
    for x in ("q", "k"):
        parts.append(_APART.format(x=x))
        if norms:
            parts.append(_NORMED.format(x=x))
        parts.append(_TURNED.format(x=x, rows=f"{x}_normed" if norms else f"{x}_apart"))
    return "".join((*parts, _VALUES))


_BODIES = {
    ROTARY_HEADS.name: _rotary(False),
    NORMED_ROTARY_HEADS.name: _rotary(True),
    JOINED_HEADS.name: _JOINED,
}


def heads_function(op: Op, opset: int = 23) -> onnx.FunctionProto:
    """One of `schema.HEAD_OPS` as a function; a model needs the same default `opset`.

    Raises:
        KeyError: `op` is none of them.
    """
    return function_proto(op, _BODIES[op.name], opset)

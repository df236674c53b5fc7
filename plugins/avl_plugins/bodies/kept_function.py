"""Ops of rows that are kept otherwise than as computed, in standard ops and SplitCacheAttention.

Rows become numbers, all of them at every step: it is for runtimes without a kernel of ours, where
it saves memory between steps and no time.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from avl_plugins.bodies.function import function_proto
from avl_plugins.schema import (
    FP16,
    HALF_CACHE_ATTENTION,
    INT8,
    MOST_CODE,
    MOST_HALF,
    QUANTIZED_CACHE_ATTENTION,
    RowType,
    rotation,
)

_ROTATION = "rotation"

_CODES = """
    {x}_axis = Constant <value_ints = [-1]> ()
    {x}_size = Abs ({rows})
    {x}_largest = ReduceMax <keepdims = 1> ({x}_size, {x}_axis)
    {x}_most = Constant <value_float: float = {most}> ()
    {x}_made_scale = Div ({x}_largest, {x}_most)
    {x}_nothing = Constant <value_float: float = 0.0> ()
    {x}_one = Constant <value_float: float = 1.0> ()
    {x}_has_size = Greater ({x}_made_scale, {x}_nothing)
    {x}_unit = Where ({x}_has_size, {x}_made_scale, {x}_one)
    {x}_units = Div ({rows}, {x}_unit)
    {x}_whole = Round ({x}_units)
    {x}_made = Cast <to = 3> ({x}_whole)
"""

_HALVES = """
    {x}_most = Constant <value_float: float = {most}> ()
    {x}_least = Neg ({x}_most)
    {x}_held = Clip ({x}_new, {x}_least, {x}_most)
    {x}_made = Cast <to = 10> ({x}_held)
"""

_HALF_NUMBERS = """
    {halves}_rows = Cast <to = 1> ({halves})
"""

_NUMBERS = """
    {codes}_float = Cast <to = 1> ({codes})
    {codes}_rows = Mul ({codes}_float, {codes}_scale)
"""

_CACHED = tuple(f"{x}_{place}" for place in ("made", "active", "parked") for x in "kv")

_ATTENTION = """
    out, mass_active, mass_parked, mass_new = avl.SplitCacheAttention <scale: float = @scale> (
        {q}, k_made_rows, v_made_rows, k_active_rows, v_active_rows, active_len,
        k_parked_rows, v_parked_rows, parked_len, row_weights
    )
"""


def kept_attention_function(kept: RowType, head_dim: int, opset: int = 23) -> onnx.FunctionProto:
    """The op of one way to keep rows, for heads of `head_dim`.

    A model needs `split_cache_attention_functions` too.

    Raises:
        KeyError: rows are kept as computed, for which those are all.
    """
    return {FP16.name: _halves, INT8.name: _codes}[kept.name](head_dim, opset)


def _halves(head_dim: int, opset: int) -> onnx.FunctionProto:
    made = [_HALVES.format(x=x, most=MOST_HALF) for x in "kv"]
    numbers = [_HALF_NUMBERS.format(halves=rows) for rows in _CACHED]
    body = "".join((*made, *numbers, _ATTENTION.replace("{q}", "q")))
    return function_proto(HALF_CACHE_ATTENTION, body, opset)


def _codes(head_dim: int, opset: int) -> onnx.FunctionProto:
    turned = """
    q_turned = MatMul (q, rotation)
    k_turned = MatMul (k_new, rotation)
    """
    codes = [
        _CODES.format(x=x, rows=rows, most=float(MOST_CODE))
        for x, rows in (("k", "k_turned"), ("v", "v_new"))
    ]
    numbers = [_NUMBERS.format(codes=rows) for rows in _CACHED]
    body = "".join((turned, *codes, *numbers, _ATTENTION.replace("{q}", "q_turned")))
    function = function_proto(QUANTIZED_CACHE_ATTENTION, body, opset)
    matrix = numpy_helper.from_array(rotation(head_dim).astype(np.float32), _ROTATION)
    constant = onnx.helper.make_node("Constant", [], [_ROTATION], value=matrix)
    function.node.insert(0, constant)
    return function

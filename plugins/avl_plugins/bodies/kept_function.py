"""Ops of rows that are kept otherwise than as computed, in standard ops and SplitCacheAttention.

Rows become numbers, all of them at every step: it is for runtimes without a kernel of ours, where
it saves memory between steps and no time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from avl_plugins.bodies.attention_body import filled
from avl_plugins.bodies.function import function_proto
from avl_plugins.schema import (
    BIASED_OPS,
    COMPUTED,
    FP16,
    MOST_CODE,
    MOST_HALF,
    ROW_OPS,
    SPLIT_CACHE_ATTENTION,
    Op,
    RowType,
    rotation,
)

_ROTATION, _ROTATIONS = "rotation", "rotations"

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

# Codes of a few bits as numbers: those of a byte lie D / (codes a byte) apart.
_UNPACKED = """
    {codes}_mask = Constant <value = uint8[1] {{{most}}}> ()
    {parts}
    {codes}_all = Concat <axis = -1> ({names})
    {codes}_float = Cast <to = 1> ({codes}_all)
    {codes}_middle = Constant <value_float: float = {middle}> ()
    {codes}_centred = Sub ({codes}_float, {codes}_middle)
    {codes}_rows = Mul ({codes}_centred, {codes}_scale)
"""

_PART = """
    {codes}_by_{shift} = Constant <value = uint8[1] {{{shift}}}> ()
    {codes}_from_{shift} = BitShift <direction = "RIGHT"> ({codes}, {codes}_by_{shift})
    {codes}_at_{shift} = BitwiseAnd ({codes}_from_{shift}, {codes}_mask)
"""

_CACHED = tuple(f"{x}_{place}" for place in ("made", "active", "parked") for x in "kv")

_ATTENTION = """
    {out}, mass_active, mass_parked, mass_new = avl.{op} <{attributes}> (
        {q}, k_made_rows, v_made_rows, k_active_rows, v_active_rows, active_len,
        k_parked_rows, v_parked_rows, parked_len, row_weights {more}
    )
"""


# The rotation for a node's head size, of those for all sizes one behind the other.
_CHOSEN = """
    rotated_sizes = Constant <value_ints = [{sizes}]> ()
    rotated_size = Shape <start = 3, end = 4> (q)
    is_before = Less (rotated_sizes, rotated_size)
    squares = Mul (rotated_sizes, rotated_sizes)
    none_before = Constant <value_ints = [0]> ()
    before = Where (is_before, squares, none_before)
    rotation_from = ReduceSum <keepdims = 1> (before)
    rotation_size = Mul (rotated_size, rotated_size)
    rotation_to = Add (rotation_from, rotation_size)
    rotation_numbers = Slice (rotations, rotation_from, rotation_to)
    rotation_shape = Concat <axis = 0> (rotated_size, rotated_size)
    rotation = Reshape (rotation_numbers, rotation_shape)
"""


def kept_attention_function(
    kept: RowType, sizes: Sequence[int], opset: int = 23, *, biased: bool = False
) -> onnx.FunctionProto:
    """The op of one way to keep rows, for heads of these sizes; or the same with a bias.

    A model needs `split_cache_attention_functions` too, or `biased_functions`.

    Raises:
        KeyError: rows are kept as computed, for which those are all.
    """
    ops = BIASED_OPS if biased else ROW_OPS
    return kept_function(ops[kept.name], ops[COMPUTED.name], kept, sizes, opset)


def kept_function(
    op: Op, computed: Op, kept: RowType, sizes: Sequence[int], opset: int
) -> onnx.FunctionProto:
    """`op`, whose rows are kept so, by `computed`, the same of rows as computed.

    Args:
        sizes: of heads, ascending.

    Raises:
        KeyError: rows are kept as computed.
    """
    if kept == FP16:
        made = [_HALVES.format(x=x, most=MOST_HALF) for x in "kv"]
        numbers = [_HALF_NUMBERS.format(halves=rows) for rows in _CACHED]
        return function_proto(op, "".join((*made, *numbers, _attention(computed, "q"))), opset)
    if not kept.scaled:
        raise KeyError(kept.name)
    return _codes(op, computed, kept, sizes, opset)


def _codes(
    op: Op, computed: Op, kept: RowType, sizes: Sequence[int], opset: int
) -> onnx.FunctionProto:
    mixed = kept.parked_bits is not None
    values = "v_turned" if mixed else "v_new"
    turned = ["q_turned = MatMul (q, rotation)", "k_turned = MatMul (k_new, rotation)"]
    turned += ["v_turned = MatMul (v_new, rotation)"] * mixed
    codes = [
        _CODES.format(x=x, rows=rows, most=float(MOST_CODE))
        for x, rows in (("k", "k_turned"), ("v", values))
    ]
    numbers = [
        _unpacked(rows, kept.parked_bits)
        if kept.parked_bits is not None and rows.endswith("_parked")
        else _NUMBERS.format(codes=rows)
        for rows in _CACHED
    ]
    attention = _attention(computed, "q_turned", "out_turned" if mixed else "out")
    back = "out = MatMul (out_turned, rotation)" if mixed else ""
    several = len(sizes) > 1
    chosen = _CHOSEN.format(sizes=", ".join(map(str, sizes))) if several else ""
    body = "\n".join((chosen, *turned, *codes, *numbers, attention, back))
    function = function_proto(op, body, opset)
    matrices = [rotation(size).astype(np.float32) for size in sizes]
    held = np.concatenate([one.ravel() for one in matrices]) if several else matrices[0]
    name = _ROTATIONS if several else _ROTATION
    matrix = numpy_helper.from_array(held, name)
    constant = onnx.helper.make_node("Constant", [], [name], value=matrix)
    function.node.insert(0, constant)
    return function


def _attention(op: Op, q: str, out: str = "out") -> str:
    more = "".join(f", {value.name}" for value in op.inputs[len(SPLIT_CACHE_ATTENTION.inputs) :])
    attributes = ", ".join(f"{one.name}: {one.kind} = @{one.name}" for one in op.attributes)
    return filled(_ATTENTION, q=q, out=out, op=op.name, attributes=attributes, more=more)


def _unpacked(codes: str, bits: int) -> str:
    shifts = range(0, 8, bits)
    return _UNPACKED.format(
        codes=codes,
        most=2**bits - 1,
        middle=(2**bits - 1) / 2,
        parts="".join(_PART.format(codes=codes, shift=shift) for shift in shifts),
        names=", ".join(f"{codes}_at_{shift}" for shift in shifts),
    )

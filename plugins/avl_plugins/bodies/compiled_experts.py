"""Mixtures of experts as a function for compilers that have no plugin.

TensorRT-RTX knows neither `Unique` nor `NonZero`, by which `experts_body` finds the rows of an
expert, and builds no loop in an If of a whole decoder. So there is one loop, over a list: of one
row its experts, and weights of others are not read; of several rows all experts, through each of
which all rows go, and what one gives that a row did not choose counts for nothing.
"""

from __future__ import annotations

import onnx

from avl_plugins.bodies.experts_body import with_weights
from avl_plugins.bodies.function import function_proto
from avl_plugins.schema import SPARSE_EXPERTS

_BODY = """
    begin = Constant <value_ints = [0]> ()
    one_dim = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    axes_1_2 = Constant <value_ints = [1, 2]> ()
    nothing = Constant <value_float = 0.0> ()
    zero = CastLike (nothing, shares)
    rows_now = Shape <start = 0, end = 1> (x)
    is_step = Equal (rows_now, one_dim)
    all = Shape <start = 0, end = 1> (gate_up)
    own = Shape <start = 1, end = 2> (chosen)
    others = Sub (all, own)
    behind = Concat <axis = 0> (begin, others)

    # What each expert counts in each row, [E, S, 1].
    first = Constant <value_int = 0> ()
    next = Constant <value_int = 1> ()
    count = Squeeze (all)
    numbers = Range (first, count, next)
    numbers_at = Unsqueeze (numbers, axes_1_2)
    is_chosen = Equal (chosen, numbers_at)
    of_choices = Where (is_chosen, shares, zero)
    of_experts = ReduceSum <keepdims = 1> (of_choices, last)
    ones = Cast <to = 6> (is_chosen)
    times = ReduceMax <keepdims = 1> (ones, last)
    is_any = Cast <to = 9> (times)

    # Of one row, its experts and their shares in front of those: [E], [E, S, 1].
    row = Gather <axis = 0> (chosen, first)
    row_all = Pad (row, behind, first, begin)
    shares_t = Transpose <perm = [1, 0]> (shares)
    shares_all = Pad (shares_t, behind, zero, begin)
    shares_at = Unsqueeze (shares_all, last)

    # So many of each are read.
    trips = Where (is_step, own, all)
    ids_all = Where (is_step, row_all, numbers)
    counts_all = Where (is_step, shares_at, of_experts)
    mine_all = Or (is_step, is_any)
    ids = Slice (ids_all, begin, trips, begin)
    counts = Slice (counts_all, begin, trips, begin)
    mine = Slice (mine_all, begin, trips, begin)
    size = Shape (x)
    zeros = ConstantOfShape (size)
    total = Scan <
        num_scan_inputs = 3,
        body = expert (sums, which, share, counted) => (sums_new) {
            EXPERT(x)
            part_all = Mul (found, share)
            part = Where (counted, part_all, zero)
            part_float = Cast <to = 1> (part)
            sums_new = Add (sums, part_float)
        }
    > (zeros, ids, counts, mine)
    y = CastLike (total, x)
"""


def compiled_experts_function(opset: int = 23) -> onnx.FunctionProto:
    """`avl::SparseExperts`; a model needs the same default `opset`."""
    return function_proto(SPARSE_EXPERTS, with_weights(SPARSE_EXPERTS, _BODY), opset)

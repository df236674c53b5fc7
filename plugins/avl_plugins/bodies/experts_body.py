"""Mixtures of experts as an ONNX function of standard ops, for runtimes without a kernel.

A loop over the experts that some row chose, ascending, as transformers has one: each takes its own
weights out of the stacks, and only then are they cast, so that the others are never read. Sums are
in float32, as ONNX Runtime's CPU adds in nothing else.
"""

from __future__ import annotations

import onnx

from avl_plugins.bodies.function import function_proto
from avl_plugins.schema import SPARSE_EXPERTS

_BODY = """
    all = Constant <value_ints = [-1]> ()
    ids = Reshape (chosen, all)
    hit = Unique <sorted = 1> (ids)
    hits = Shape (hit)
    axis = Constant <value_ints = [0]> ()
    count = Squeeze (hits, axis)
    one = Constant <value_int = 1> ()
    always = Cast <to = 9> (one)
    sizes = Shape (x)
    zeros = ConstantOfShape (sizes)
    total = Loop <
        body = expert (int64 number, bool goes, sums) => (goes_on, sums_new) {
            goes_on = Identity (goes)
            last = Constant <value_ints = [-1]> ()
            none = Constant <value_int = 0> ()
            which = Gather <axis = 0> (hit, number)
            is_mine = Equal (chosen, which)
            mine = CastLike (is_mine, shares)
            own_shares = Mul (shares, mine)
            share = ReduceSum <keepdims = 1> (own_shares, last)
            mine_whole = Cast <to = 7> (is_mine)
            times = ReduceSum <keepdims = 0> (mine_whole, last)
            has_any = Greater (times, none)
            at_row = NonZero (has_any)
            rows = Reshape (at_row, last)
            own = Gather <axis = 0> (x, rows)
            gate_up_stored = Gather <axis = 0> (gate_up, which)
            gate_up_own = CastLike (gate_up_stored, x)
            both = Gemm <transB: int = @gate_up_trans> (own, gate_up_own)
            gate, up = Split <axis = 1, num_outputs = 2> (both)
            sigmoid = Sigmoid (gate)
            silu = Mul (gate, sigmoid)
            inner = Mul (silu, up)
            down_stored = Gather <axis = 0> (down, which)
            down_own = CastLike (down_stored, x)
            found = Gemm <transB: int = @down_trans> (inner, down_own)
            share_of_row = Gather <axis = 0> (share, rows)
            part = Mul (found, share_of_row)
            part_float = Cast <to = 1> (part)
            at = Unsqueeze (rows, last)
            sums_new = ScatterND <reduction = "add"> (sums, at, part_float)
        }
    > (count, always, zeros)
    y = CastLike (total, x)
"""


def experts_function(opset: int = 23) -> onnx.FunctionProto:
    """`avl::SparseExperts` as a function; a model needs the same default `opset`."""
    return function_proto(SPARSE_EXPERTS, _BODY, opset)

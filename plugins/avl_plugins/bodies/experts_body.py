"""Mixtures of experts as ONNX functions of standard ops, for runtimes without a kernel.

A loop over the experts that some row chose, ascending, as transformers has one: each takes its own
weights out of the stacks, and only then are they cast, so that the others are never read. Sums are
in float32, as ONNX Runtime's CPU adds in nothing else.
"""

from __future__ import annotations

import re

import onnx

from avl_plugins.bodies.function import function_proto
from avl_plugins.schema import QUANTIZED_EXPERTS, Op

# WEIGHT(name) makes name_own of the stack `name`, GEMM(..) multiplies with it.
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
            EXPERT(own)
            share_of_row = Gather <axis = 0> (share, rows)
            part = Mul (found, share_of_row)
            part_float = Cast <to = 1> (part)
            at = Unsqueeze (rows, last)
            sums_new = ScatterND <reduction = "add"> (sums, at, part_float)
        }
    > (count, always, zeros)
    y = CastLike (total, x)
"""
# What one expert makes of ROWS.
_EXPERT = """
            WEIGHT(gate_up)
            both = GEMM(gate_up) (ROWS, gate_up_own)
            gate, up = Split <axis = 1, num_outputs = 2> (both)
            sigmoid = Sigmoid (gate)
            silu = Mul (gate, sigmoid)
            inner = Mul (silu, up)
            WEIGHT(down)
            found = GEMM(down) (inner, down_own)
"""
_STORED = """
            {w}_stored = Gather <axis = 0> ({w}, which)
            {w}_own = CastLike ({w}_stored, x)
"""
# Codes of an expert as numbers, by their bits. Of 4 bits a code is c where (c & 15) ^ 8 is c + 8.
_CODES = {
    4: """
            {w}_bytes = Gather <axis = 0> ({w}, which)
            {w}_half = Constant <value = uint8 {{15}}> ()
            {w}_four = Constant <value = uint8 {{4}}> ()
            {w}_eight = Constant <value = uint8 {{8}}> ()
            {w}_even = BitwiseAnd ({w}_bytes, {w}_half)
            {w}_odd = BitShift <direction = "RIGHT"> ({w}_bytes, {w}_four)
            {w}_evens = Unsqueeze ({w}_even, last)
            {w}_odds = Unsqueeze ({w}_odd, last)
            {w}_pairs = Concat <axis = -1> ({w}_evens, {w}_odds)
            {w}_above = BitwiseXor ({w}_pairs, {w}_eight)
            {w}_wide = CastLike ({w}_above, x)
            {w}_least = CastLike ({w}_eight, x)
            {w}_codes = Sub ({w}_wide, {w}_least)
""",
    8: """
            {w}_bytes = Gather <axis = 0> ({w}, which)
            {w}_codes = CastLike ({w}_bytes, x)
""",
}
_SCALED = """
            {w}_scale = Gather <axis = 0> ({w}_scales, which)
            {w}_table = Shape ({w}_scale)
            {w}_cut = Concat <axis = 0> ({w}_table, last)
            {w}_blocks = Reshape ({w}_codes, {w}_cut)
            {w}_of_block = Unsqueeze ({w}_scale, last)
            {w}_scaled = Mul ({w}_blocks, {w}_of_block)
            {w}_matrix = Constant <value_ints = [0, -1]> ()
            {w}_own = Reshape ({w}_scaled, {w}_matrix)
"""


def experts_function(op: Op, opset: int = 23) -> onnx.FunctionProto:
    """SPARSE_EXPERTS or one of QUANTIZED_EXPERTS; a model needs the same default `opset`."""
    return function_proto(op, with_weights(op, _BODY), opset)


def with_weights(op: Op, body: str) -> str:
    """`body` with the nodes of one expert, its weights taken out of the stacks of `op`."""
    weight, gemm = _STORED, "Gemm <transB: int = @{w}_trans>"
    for bits, quantized in QUANTIZED_EXPERTS.items():
        if op.name == quantized.name:
            weight, gemm = _CODES[bits] + _SCALED, "Gemm <transB = 1>"
    body = re.sub(r"EXPERT\((\w+)\)", lambda found: _EXPERT.replace("ROWS", found[1]), body)
    for name in ("gate_up", "down"):
        body = body.replace(f"WEIGHT({name})", weight.format(w=name))
        body = body.replace(f"GEMM({name})", gemm.format(w=name))
    return body

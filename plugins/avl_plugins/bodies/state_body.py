"""Ops of layers with a state as ONNX functions of standard ops, for runtimes without a kernel.

The gated delta rule has two branches, chosen by the number of new rows. A step takes one product of
the old state with key and query together, since with d = beta (v - e^g S^T k) the output is
e^g S^T q + (q . k) d. A prompt is computed in chunks (arXiv 2412.06464): inside a chunk the rule is
a system of equations, (I + A) X = I with A strictly lower triangular, and only states go from chunk
to chunk, by Scan.

(I + A)^-1 is made by doubling blocks, X <- X - X (A o M) X for blocks of 1, 2, 4, ... rows, M being
those on the lower left of a pair. (I - A) (I + A^2) (I + A^4) ... takes as many products, and loses
all digits where keys are alike, as those of neighbouring patches are.
"""

from __future__ import annotations

import onnx

from avl_plugins.bodies.attention_body import filled
from avl_plugins.bodies.function import function_proto
from avl_plugins.schema import CONVOLUTIONS, GATED_DELTA_RULE, SHORT_CONVOLUTION_SILU, Op
from avl_plugins.schema.states import NORM_EPSILON

CHUNK = 32  # rows

_CONVOLUTION = """
    rows = Concat <axis = 1> (conv_state, x)
    axis_1 = Constant <value_ints = [1]> ()
    count = Shape <start = 1, end = 2> (x)
    all_rows = Shape <start = 1, end = 2> (rows)
    conv_new = Slice (rows, count, all_rows, axis_1)
    taps_c = Transpose <perm = [1, 0]> (weight)
    {taps}
    {sums} = Sum ({names})
"""

_SILU = """
    share = Sigmoid (sums)
    y = Mul (sums, share)
"""

_TAP = """
    at_{j} = Constant <value_ints = [{j}]> ()
    end_{j} = Add (at_{j}, count)
    rows_{j} = Slice (rows, at_{j}, end_{j}, axis_1)
    tap_{j} = Gather <axis = 0> (taps_c, at_{j})
    part_{j} = Mul (rows_{j}, tap_{j})
"""

# What both branches read: float32 [B, S, Hv, .], queries and keys of norm 1.
_RULE = """
    key_heads = Shape <start = 2, end = 3> (k)
    value_heads = Shape <start = 2, end = 3> (v)
    group = Div (value_heads, key_heads)
    last = Constant <value_ints = [-1]> ()
    axis_3 = Constant <value_ints = [3]> ()
    same = Constant <value_ints = [0]> ()
    epsilon = Constant <value_float = {epsilon}> ()
    key_size = Shape <start = 3, end = 4> (k)
    key_width = Cast <to = 1> (key_size)
    root = Sqrt (key_width)
    lead = Shape <start = 0, end = 2> (v)
    one = Constant <value_ints = [1]> ()
    spread = Concat <axis = 0> (one, one, one, group, one)
    wide = Concat <axis = 0> (lead, value_heads, key_size)
    {unit_q}
    q_unit = Div (q_heads, root)
    {unit_k}
    k_unit = Identity (k_heads)
    v_float = Cast <to = 1> (v)
    beta_float = Cast <to = 1> (beta)
    rows_now = Shape <start = 1, end = 2> (v)
    is_step = Equal (rows_now, one)
    out_float, delta_new = If (is_step) <
        then_branch = step () => (step_out, step_state) { {step} },
        else_branch = prompt () => (prompt_out, prompt_state) { {prompt} }
    >
    out = CastLike (out_float, v)
"""

_UNIT = """
    {x}_float = Cast <to = 1> ({x})
    {x}_squares = ReduceSumSquare <keepdims = 1> ({x}_float, last)
    {x}_sum = Add ({x}_squares, epsilon)
    {x}_norm = Sqrt ({x}_sum)
    {x}_divided = Div ({x}_float, {x}_norm)
    {x}_each = Unsqueeze ({x}_divided, axis_3)
    {x}_group = Tile ({x}_each, spread)
    {x}_heads = Reshape ({x}_group, wide)
"""

# Rows of heads, [B, Hv, 1, .].
_STEP = """
    s_axis_1 = Constant <value_ints = [1]> ()
    s_axis_2 = Constant <value_ints = [2]> ()
    s_axes = Constant <value_ints = [2, 3]> ()
    s_last = Constant <value_ints = [-1]> ()
    s_q = Transpose <perm = [0, 2, 1, 3]> (q_unit)
    s_k = Transpose <perm = [0, 2, 1, 3]> (k_unit)
    s_v = Transpose <perm = [0, 2, 1, 3]> (v_float)
    s_decay_row = Squeeze (decay, s_axis_1)
    s_decay_log = Unsqueeze (s_decay_row, s_axes)
    s_decay = Exp (s_decay_log)
    s_beta_row = Squeeze (beta_float, s_axis_1)
    s_beta = Unsqueeze (s_beta_row, s_axes)
    s_both = Concat <axis = 2> (s_k, s_q)
    s_read = MatMul (s_both, delta_state)
    s_known = Mul (s_read, s_decay)
    s_of_key, s_of_query = Split <axis = 2, num_outputs = 2> (s_known)
    s_news = Sub (s_v, s_of_key)
    s_change = Mul (s_news, s_beta)
    s_kept = Mul (delta_state, s_decay)
    s_k_column = Transpose <perm = [0, 1, 3, 2]> (s_k)
    s_added = Mul (s_k_column, s_change)
    step_state = Add (s_kept, s_added)
    s_products = Mul (s_q, s_k)
    s_dot = ReduceSum <keepdims = 1> (s_products, s_last)
    s_own = Mul (s_dot, s_change)
    s_found = Add (s_of_query, s_own)
    step_out = Transpose <perm = [0, 2, 1, 3]> (s_found)
"""

_PROMPT = """
    # Rows in whole chunks, [chunks, B, Hv, C, .]: rows of zeros behind them change nothing.
    p_chunk = Constant <value_ints = [{chunk}]> ()
    p_zero = Constant <value_ints = [0]> ()
    p_one = Constant <value_ints = [1]> ()
    p_minus = Constant <value_ints = [-1]> ()
    p_nothing = Constant <value_float = 0.0> ()
    p_behind = Mod (rows_now, p_chunk)
    p_missing = Sub (p_chunk, p_behind)
    p_more = Mod (p_missing, p_chunk)
    p_pads = Concat <axis = 0> (p_zero, p_more)
    p_batch = Shape <start = 0, end = 1> (v)
    p_padded = Add (rows_now, p_more)
    p_chunks = Div (p_padded, p_chunk)
    p_decay_column = Unsqueeze (decay, p_minus)
    p_beta_column = Unsqueeze (beta_float, p_minus)
    {parts}
    p_k_t = Transpose <perm = [0, 1, 2, 4, 3]> (p_k)

    # Which rows come before others: [C, C].
    p_first = Constant <value_int = 0> ()
    p_end = Constant <value_int = {chunk}> ()
    p_next = Constant <value_int = 1> ()
    p_column = Range (p_first, p_end, p_next)
    p_row = Unsqueeze (p_column, p_one)
    p_lower = GreaterOrEqual (p_row, p_column)
    p_sums = Cast <to = 1> (p_lower)
    p_same = Equal (p_row, p_column)
    p_identity = Cast <to = 1> (p_same)

    # Decays from each row on to later ones; exponents of others could be too large.
    p_since = MatMul (p_sums, p_decay)
    p_since_t = Transpose <perm = [0, 1, 2, 4, 3]> (p_since)
    p_between_all = Sub (p_since, p_since_t)
    p_never = Constant <value_float = -1e30> ()
    p_between_log = Where (p_lower, p_between_all, p_never)
    p_between = Exp (p_between_log)
    p_since_begin = Exp (p_since)
    p_last_row = Constant <value_ints = [{last}]> ()
    p_four = Constant <value_ints = [3]> ()
    p_total = Slice (p_since, p_last_row, p_chunk, p_four)
    p_to_end_log = Sub (p_total, p_since)
    p_to_end = Exp (p_to_end_log)
    p_whole = Exp (p_total)

    p_k_beta = Mul (p_k, p_beta)
    p_v_beta = Mul (p_v, p_beta)
    p_k_products = MatMul (p_k_beta, p_k_t)
    p_a = Mul (p_k_products, p_between)
    p_x_1 = Identity (p_identity)
    {doublings}
    p_values = MatMul (p_x_{chunk}, p_v_beta)
    p_k_decayed = Mul (p_k_beta, p_since_begin)
    p_reads = MatMul (p_x_{chunk}, p_k_decayed)
    p_q_products = MatMul (p_q, p_k_t)
    p_attention = Mul (p_q_products, p_between)
    p_queries = Mul (p_q, p_since_begin)
    p_k_end = Mul (p_k, p_to_end)
    p_writes = Transpose <perm = [0, 1, 2, 4, 3]> (p_k_end)

    prompt_state, p_found = Scan <
        num_scan_inputs = 6,
        body = chunk (c_state, c_values, c_reads, c_attention, c_queries, c_writes, c_whole)
            => (c_state_new, c_out)
        {
            c_known = MatMul (c_reads, c_state)
            c_change = Sub (c_values, c_known)
            c_old = MatMul (c_queries, c_state)
            c_own = MatMul (c_attention, c_change)
            c_out = Add (c_old, c_own)
            c_kept = Mul (c_state, c_whole)
            c_added = MatMul (c_writes, c_change)
            c_state_new = Add (c_kept, c_added)
        }
    > (delta_state, p_values, p_reads, p_attention, p_queries, p_writes, p_whole)
    p_rows = Transpose <perm = [1, 0, 3, 2, 4]> (p_found)
    p_size = Shape <start = 3, end = 4> (v)
    p_shape = Concat <axis = 0> (p_batch, p_padded, value_heads, p_size)
    p_together = Reshape (p_rows, p_shape)
    prompt_out = Slice (p_together, p_zero, rows_now, p_one)
"""

_PART = """
    p_{x}_padded = Pad ({rows}, p_pads, p_nothing, p_one)
    p_{x}_shape = Concat <axis = 0> (p_batch, p_chunks, p_chunk, value_heads, p_minus)
    p_{x}_chunks = Reshape (p_{x}_padded, p_{x}_shape)
    p_{x} = Transpose <perm = [1, 0, 3, 2, 4]> (p_{x}_chunks)
"""
_PARTS = {
    "q": "q_unit",
    "k": "k_unit",
    "v": "v_float",
    "decay": "p_decay_column",
    "beta": "p_beta_column",
}

# Pairs of blocks of {size} rows: the lower left of each.
_DOUBLING = """
    p_size_{size} = Constant <value_int = {size}> ()
    p_pair_{size} = Constant <value_int = {twice}> ()
    p_half_{size} = Constant <value_int = 2> ()
    p_row_block_{size} = Div (p_row, p_size_{size})
    p_column_block_{size} = Div (p_column, p_size_{size})
    p_row_pair_{size} = Div (p_row, p_pair_{size})
    p_column_pair_{size} = Div (p_column, p_pair_{size})
    p_together_{size} = Equal (p_row_pair_{size}, p_column_pair_{size})
    p_below_{size} = Greater (p_row_block_{size}, p_column_block_{size})
    p_in_{size} = And (p_together_{size}, p_below_{size})
    p_mask_{size} = Cast <to = 1> (p_in_{size})
    p_a_{size} = Mul (p_a, p_mask_{size})
    p_xa_{size} = MatMul (p_x_{size}, p_a_{size})
    p_xax_{size} = MatMul (p_xa_{size}, p_x_{size})
    p_x_{twice} = Sub (p_x_{size}, p_xax_{size})
"""


def state_function(op: Op, kernel: int, opset: int = 23) -> onnx.FunctionProto:
    """One of `schema.STATE_OPS` as a function; a model needs the same default `opset`.

    Args:
        kernel: inputs that a convolution sees.

    Raises:
        KeyError: `op` is none of them.
    """
    if op in CONVOLUTIONS:
        names = ", ".join(f"part_{j}" for j in range(kernel))
        taps = "".join(_TAP.format(j=j) for j in range(kernel))
        sums, silu = ("sums", _SILU) if op == SHORT_CONVOLUTION_SILU else ("y", "")
        body = _CONVOLUTION.format(taps=taps, names=names, sums=sums) + silu
        return function_proto(op, body, opset)
    if op != GATED_DELTA_RULE:
        raise KeyError(op.name)
    doublings = [_DOUBLING.format(size=size, twice=2 * size) for size in _sizes()]
    prompt = filled(
        _PROMPT,
        parts="".join(_PART.format(x=x, rows=rows) for x, rows in _PARTS.items()),
        doublings="".join(doublings),
        chunk=CHUNK,
        last=CHUNK - 1,
    )
    body = filled(
        _RULE,
        epsilon=f"{NORM_EPSILON:.1e}",
        unit_q=_UNIT.format(x="q"),
        unit_k=_UNIT.format(x="k"),
        step=_STEP,
        prompt=prompt,
    )
    return function_proto(op, body, opset)


def _sizes() -> list[int]:
    """Of the blocks that are doubled until one is a chunk."""
    return [1 << power for power in range(CHUNK.bit_length() - 1)]

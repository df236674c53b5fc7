"""Attention over a cache as functions for compilers that have no plugin: keys come first.

TensorRT-RTX (and TensorRT without the plugin) compiles these bodies, which compute what those of
`function` and `restored_function` do, without a choice and without `NonZero`, which it does not
know. Found by reading the kernels in engines of TensorRT-RTX 1.7, which spells a product that is
not in its favourite layout out as copies:

- Scores are [keys, G * S]. A product with transposed keys would copy every cached key at every
  step; here only the queries are transposed.
- Masses are sums of products, which join the softmax's kernel. A product of matrices in float32
  would be one more, and Turing has none.
- Cached rows are padded to a multiple of 8, which copies them too, unless the compiler can see
  that they are one: `avl_runtime.engines.graphs` says so in the shape of the inputs.
"""

from __future__ import annotations

import onnx

from avl_plugins.bodies.attention_body import constant_ints, filled
from avl_plugins.bodies.function import function_proto
from avl_plugins.bodies.restored_function import bias_body
from avl_plugins.schema import (
    BIASED_CACHE_ATTENTION,
    BLOCK_CACHE_ATTENTION,
    RESTORED_CACHE_ATTENTION,
    SPLIT_CACHE_ATTENTION,
    STANDING_BIAS,
    WINDOW_CACHE_ATTENTION,
    Op,
)

_BODY = """
    # Sizes of the new rows, which of them see which, and their weights, [..., G * S] with g
    # outermost.
    heads = {heads}
    kv_heads = {kv_heads}
    group = Div (heads, kv_heads)
    new = Shape <start = 2, end = 3> (row_weights)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    axis_1 = Constant <value_ints = [1]> ()
    axis_2 = Constant <value_ints = [2]> ()
    axis_4 = Constant <value_ints = [4]> ()
    axes_1_3 = Constant <value_ints = [1, 3]> ()
    axes_1_to_3 = Constant <value_ints = [1, 2, 3]> ()
    new_size = Squeeze (new)
    new_index = Range (zero, new_size, one)
    row_index = Tile (new_index, group)
    new_column = Unsqueeze (new_index, axis_1)
    {reach}
    group_float = Cast <to = 1> (group)
    row_share = Div (row_weights, group_float)
    group_share = Gather <axis = 2> (row_share, row_index)
    weights = Unsqueeze (group_share, axes_1_3)

    # Scaled queries, one matrix [D, G * S] a KV head.
    scale_float = Constant <value_float: float = @scale> ()
    scale_like = CastLike (scale_float, q)
    batch_dim = Constant <value_ints = [0]> ()
    rest_dims = Constant <value_ints = [-1, 0]> ()
    group_shape = Concat <axis = 0> (batch_dim, kv_heads, rest_dims)
    q_scaled = Mul (q, scale_like)
    q_group = Reshape (q_scaled, group_shape)
    q_t = Transpose <perm = [0, 1, 3, 2]> (q_group)

    # Scores of each block of keys, [B, Hkv, keys, G * S].
    masked = Constant <value_float = -3.4028234663852886e38> ()

    active_dot = MatMul (k_active, q_t)
    {active_all}
    active = Shape <start = 2, end = 3> (k_active)
    active_size = Squeeze (active)
    active_index = Range (zero, active_size, one)
    active_column = Unsqueeze (active_index, axis_1)
    active_end = Unsqueeze (active_len, axes_1_to_3)
    active_held = Less (active_column, active_end)
    {active_near}
    active_scores = Where ({active_seen}, active_all, masked)

    parked_dot = MatMul (k_parked, q_t)
    {parked_all}
    parked = Shape <start = 2, end = 3> (k_parked)
    parked_size = Squeeze (parked)
    parked_index = Range (zero, parked_size, one)
    parked_column = Unsqueeze (parked_index, axis_1)
    parked_end = Unsqueeze (parked_len, axes_1_to_3)
    parked_seen = Less (parked_column, parked_end)
    parked_scores = Where (parked_seen, parked_all, masked)

    new_dot = MatMul (k_new, q_t)
    {new_all}
    new_scores = Where ({new_seen}, new_all, masked)

    scores = Concat <axis = 2> (active_scores, parked_scores, new_scores)
    probability = Softmax <axis = 2> (scores)
    sizes = Concat <axis = 0> (active, parked, new)

    # Values, then back to one row a query head.
    probability_like = CastLike (probability, q)
    p_active, p_parked, p_new = Split <axis = 2> (probability_like, sizes)
    p_active_t = Transpose <perm = [0, 1, 3, 2]> (p_active)
    p_parked_t = Transpose <perm = [0, 1, 3, 2]> (p_parked)
    p_new_t = Transpose <perm = [0, 1, 3, 2]> (p_new)
    o_active = MatMul (p_active_t, v_active)
    o_parked = MatMul (p_parked_t, v_parked)
    o_new = MatMul (p_new_t, v_new)
    o_group = Sum (o_active, o_parked, o_new)
    out_shape = Concat <axis = 0> (batch_dim, heads, rest_dims)
    out = Reshape (o_group, out_shape)

    probability_row = Unsqueeze (probability, axis_2)
    weighted = Mul (weights, probability_row)
    mass = ReduceSum <keepdims = 0> (weighted, axis_4)
    mass_active, mass_parked, mass_new = Split <axis = 3> (mass, sizes)
"""


_PLAIN = "{x}_all = Cast <to = 1> ({x}_dot)"
# A bias [B, F, S, keys] lies as scores do, [B, F, keys, G * S].
_BIASED = """
    {x}_product = Cast <to = 1> ({x}_dot)
    {x}_of_rows = Transpose <perm = [0, 1, 3, 2]> (bias_{x})
    {x}_bias = Gather <axis = 3> ({x}_of_rows, row_index)
    {x}_all = Add ({x}_product, {x}_bias)"""


# What new rows see of one another, [..., S, G * S], and of active rows, [..., A, G * S].
_CAUSAL = {
    "reach": "causal = LessOrEqual (new_column, row_index)",
    "new_seen": "causal",
    "active_near": "",
    "active_seen": "active_held",
}
_ENDS = """
    axes_1_2 = Constant <value_ints = [1, 2]> ()
    ends_of_rows = Gather <axis = 1> (row_ends, row_index)
    ends = Unsqueeze (ends_of_rows, axes_1_2)
    in_block = Less (new_column, ends)"""
_BLOCK = _CAUSAL | {"reach": _ENDS, "new_seen": "in_block"}
_WINDOW = {
    "reach": f"""{_ENDS}
    of_rows = Gather <axis = 1> (row_positions, row_index)
    positions = Unsqueeze (of_rows, axes_1_2)
    window = Constant <value_int: int = @window> ()
    least = Sub (positions, window)
    new_positions = Unsqueeze (row_positions, axes_1_3)
    new_near = Greater (new_positions, least)
    in_window = And (in_block, new_near)""",
    "new_seen": "in_window",
    "active_near": """
    held_positions = Unsqueeze (active_positions, axes_1_3)
    is_near = Greater (held_positions, least)
    active_in_window = And (active_held, is_near)""",
    "active_seen": "active_in_window",
}
_BODIES = {
    SPLIT_CACHE_ATTENTION.name: (_CAUSAL, _PLAIN),
    BIASED_CACHE_ATTENTION.name: (_CAUSAL, _BIASED),
    BLOCK_CACHE_ATTENTION.name: (_BLOCK, _PLAIN),
    WINDOW_CACHE_ATTENTION.name: (_WINDOW, _PLAIN),
}


def compiled_attention_function(
    opset: int, heads: tuple[int, int], op: Op = SPLIT_CACHE_ATTENTION
) -> onnx.FunctionProto:
    """The body for `heads` (H, Hkv); a model needs the same default `opset`.

    Args:
        op: this one, or BIASED_, BLOCK_ or WINDOW_CACHE_ATTENTION.

    Raises:
        KeyError: `op` is none of these.
    """
    reach, scores = _BODIES[op.name]
    places = {f"{x}_all": filled(scores, x=x) for x in ("active", "parked", "new")}
    sizes = {"heads": constant_ints(heads[0]), "kv_heads": constant_ints(heads[1])}
    return function_proto(op, filled(_BODY, **places, **reach, **sizes), opset)


# The bias of rows that stand for no token is 0, so that no engine needs an If, which cannot be
# recorded.
_RESTORED = """
    one_dim = Constant <value_ints = [1]> ()
    new_standing = Unsqueeze (row_standing, one_dim)
    bias_active = avl.StandingBias (nearness, row_standing, active_standing)
    bias_parked = avl.StandingBias (nearness, row_standing, parked_standing)
    bias_new = avl.StandingBias (nearness, row_standing, new_standing)
    {made} = avl.{biased} <scale: float = @scale> ({given}, bias_active, bias_parked, bias_new)
"""


def compiled_restored_functions(
    opset: int, heads: tuple[int, int], axes: int
) -> tuple[onnx.FunctionProto, ...]:
    """`avl::RestoredCacheAttention`, and what it calls, for builders that compile a graph whole.

    Where nodes of it are given where all cached rows stand, whether any stands for a token or not.

    Args:
        axes: of positions, X.
    """
    op, biased = RESTORED_CACHE_ATTENTION, BIASED_CACHE_ATTENTION
    body = filled(
        _RESTORED,
        made=", ".join(value.name for value in op.outputs),
        biased=biased.name,
        given=", ".join(value.name for value in SPLIT_CACHE_ATTENTION.inputs),
    )
    return (
        function_proto(op, body, opset),
        function_proto(STANDING_BIAS, bias_body(axes), opset),
        compiled_attention_function(opset, heads, biased),
    )


def compiled_functions(
    opset: int, heads: tuple[int, int], axes: int
) -> tuple[onnx.FunctionProto, ...]:
    """All attention over a cache that graphs have, and what it calls; arguments as above."""
    plain = (SPLIT_CACHE_ATTENTION, BLOCK_CACHE_ATTENTION, WINDOW_CACHE_ATTENTION)
    return (
        *(compiled_attention_function(opset, heads, op) for op in plain),
        *compiled_restored_functions(opset, heads, axes),
    )

"""RESTORE's bias (arXiv 2606.01711) and attention that it is added to, in standard ops."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from avl_plugins.bodies.attention_body import attention_body, filled, prompt_body, step_body
from avl_plugins.bodies.function import function_proto
from avl_plugins.bodies.kept_function import kept_attention_function
from avl_plugins.schema import (
    BIASED_CACHE_ATTENTION,
    BIASED_CACHE_PROMPT,
    BIASED_CACHE_STEP,
    BIASED_OPS,
    COMPUTED,
    RESTORED_OPS,
    ROW_OPS,
    STANDING_BIAS,
    RowType,
)

_BIASES = "bias_active, bias_parked, bias_new"

_RESTORED = """
    at_counts = Constant <value_int = -1> ()
    counts = Gather <axis = 2> (row_standing, at_counts)
    most = ReduceMax <keepdims = 0> (counts)
    nobody = Constant <value_int = 0> ()
    plain = Equal (most, nobody)
    {made} = If (plain) <
        then_branch = as_ever () => ({plain_made})
        { {plain_made} = avl.{plain} <scale: float = @scale> ({given}) },
        else_branch = restored () => ({biased_made})
        {
            # One bias of all keys, as nodes take longer than what they compute in a step.
            one_dim = Constant <value_ints = [1]> ()
            begin = Constant <value_ints = [0]> ()
            unlike = Shape <start = 1, end = 2> (active_standing)
            each_head = Concat <axis = 0> (unlike, one_dim, one_dim)
            new_standing = Unsqueeze (row_standing, one_dim)
            parked_heads = Expand (parked_standing, each_head)
            new_heads = Expand (new_standing, each_head)
            key_standing = Concat <axis = 2> (active_standing, parked_heads, new_heads)
            bias = avl.StandingBias (nearness, row_standing, key_standing)
            active_size = Shape <start = 2, end = 3> (active_standing)
            parked_size = Shape <start = 2, end = 3> (parked_standing)
            new_size = Shape <start = 1, end = 2> (row_standing)
            sizes = Concat <axis = 0> (active_size, parked_size, new_size)
            bias_active, bias_parked_heads, bias_new_heads = Split <axis = 3> (bias, sizes)
            bias_parked = Slice (bias_parked_heads, begin, one_dim, one_dim)
            bias_new = Slice (bias_new_heads, begin, one_dim, one_dim)
            {biased_made} = avl.{biased} <scale: float = @scale> ({given}, {biases})
        }
    >
"""

# Scores of steps and prompts in the places that `attention_body` has for them.
_STEP_SCORES = {
    "active_all": """
    active_product = Cast <to = 1> (active_dot)
    active_all = Add (active_product, bias_active)""",
    "parked_all": """
    parked_product = Cast <to = 1> (parked_dot)
    parked_all = Add (parked_product, bias_parked)""",
    "new_all": """
    new_product = Cast <to = 1> (new_dot)
    new_scores = Add (new_product, bias_new)""",
}
_PROMPT_SCORES = {  # a bias [B, F, S, keys], and of each query head where heads differ
    "mask": """
    unlike = Shape <start = 1, end = 2> (bias_active)
    bias_of_active = Slice (bias_active, begin, active_top, axis_3)
    bias_parked_used = Slice (bias_parked, begin, parked_top, axis_3)
    bias_parked_shape = Concat <axis = 0> (batch, unlike, rows_new, parked_top)
    bias_of_parked = Expand (bias_parked_used, bias_parked_shape)
    bias_new_shape = Concat <axis = 0> (batch, unlike, rows_new, rows_new)
    bias_of_new = Expand (bias_new, bias_new_shape)
    bias = Concat <axis = 3> (bias_of_active, bias_of_parked, bias_of_new)
    unseen = Constant <value_float = -3.4028234663852886e38> ()
    bias_seen = Where (seen, bias, unseen)
    bias_like = CastLike (bias_seen, q_scaled)
    is_alike = Equal (unlike, one_dim)
    bias_heads = Where (is_alike, one_dim, heads)
    bias_count = Squeeze (bias_heads)
    bias_index = Range (p_zero, bias_count, p_one)
    bias_kv_head = Div (bias_index, group)
    mask = Gather <axis = 1> (bias_like, bias_kv_head)""",
    "mask_is": "mask",
    "rows_all": """
    rows_product = Cast <to = 1> (rows_dot)
    bias_at = Tile (rows, group)
    bias_rows = Gather <axis = 2> (bias, bias_at)
    rows_all = Add (rows_product, bias_rows)""",
}

# The share of one axis of positions in D, [B, F, S, K].
_AXIS = """
    axis_{x} = Constant <value_int = {x}> ()
    row_on_{x} = Gather <axis = 2> (row_standing, axis_{x})
    row_at_{x} = Unsqueeze (row_on_{x}, row_axes)
    key_on_{x} = Gather <axis = 3> (key_standing, axis_{x})
    key_at_{x} = Unsqueeze (key_on_{x}, key_axes)
    apart_{x} = Sub (row_at_{x}, key_at_{x})
    distance_{x} = Abs (apart_{x})
    table_{x} = Gather <axis = 0> (nearness, axis_{x})
    near_{x} = Gather <axis = 0> (table_{x}, distance_{x})
"""

_BIAS = """
    row_axes = Constant <value_ints = [1, 3]> ()
    key_axes = Constant <value_ints = [2]> ()
    {axes}
    near = Sum ({near})
    two = Constant <value_float = 2.0> ()
    left = Sub (two, near)
    at_counts = Constant <value_int = -1> ()
    row_counts = Gather <axis = 2> (row_standing, at_counts)
    rows_for = Unsqueeze (row_counts, row_axes)
    key_counts = Gather <axis = 3> (key_standing, at_counts)
    keys_for = Unsqueeze (key_counts, key_axes)
    tokens = Cast <to = 1> (keys_for)
    both = Mul (rows_for, keys_for)
    nobody = Constant <value_int = 0> ()
    restores = Greater (both, nobody)
    many = Mul (left, tokens)
    one = Constant <value_float = 1.0> ()
    factor = Where (restores, many, one)
    bias = Log (factor)
"""


def restored_functions(
    axes: int, opset: int = 23, heads: tuple[int, int] | None = None
) -> tuple[onnx.FunctionProto, ...]:
    """`avl::RestoredCacheAttention`, and what it calls of its own.

    A model needs `split_cache_attention_functions` too; `opset` and `heads` are the same.

    Args:
        axes: of positions, X.
    """
    return (*choice_functions(axes, opset), *biased_functions(opset, heads))


def choice_functions(axes: int, opset: int = 23) -> tuple[onnx.FunctionProto, ...]:
    """`avl::RestoredCacheAttention` and the bias, without attention itself."""
    return (
        restored_function(COMPUTED, opset),
        function_proto(STANDING_BIAS, bias_body(axes), opset),
    )


def restored_function(kept: RowType, opset: int = 23) -> onnx.FunctionProto:
    """The op of one way to keep rows where attention may be biased: the choice alone."""
    plain, biased = ROW_OPS[kept.name], BIASED_OPS[kept.name]
    made = [value.name for value in plain.outputs]
    body = filled(
        _RESTORED,
        made=", ".join(made),
        plain_made=", ".join(f"plain_{name}" for name in made),
        biased_made=", ".join(f"biased_{name}" for name in made),
        plain=plain.name,
        biased=biased.name,
        given=", ".join(value.name for value in plain.inputs),
        biases=_BIASES,
    )
    return function_proto(RESTORED_OPS[kept.name], body, opset)


def kept_restored_functions(
    kept: RowType, sizes: Sequence[int], opset: int = 23
) -> tuple[onnx.FunctionProto, ...]:
    """What a model needs of a way to keep rows, beside `restored_functions`.

    Raises:
        KeyError: rows are kept as computed, for which those are all.
    """
    both = (kept_attention_function(kept, sizes, opset, biased=one) for one in (False, True))
    return (restored_function(kept, opset), *both)


def biased_functions(
    opset: int = 23, heads: tuple[int, int] | None = None
) -> tuple[onnx.FunctionProto, ...]:
    """`avl::BiasedCacheAttention`, and its `BiasedCacheStep` and `-Prompt`."""
    choice = attention_body(more=_BIASES, step="BiasedCacheStep", several="BiasedCachePrompt")
    return (
        function_proto(BIASED_CACHE_ATTENTION, choice, opset),
        function_proto(BIASED_CACHE_STEP, step_body(heads, _STEP_SCORES), opset),
        function_proto(BIASED_CACHE_PROMPT, prompt_body(heads, scores=_PROMPT_SCORES), opset),
    )


def bias_body(axes: int) -> str:
    """StandingBias's nodes, for positions on so many axes."""
    parts = "".join(_AXIS.format(x=x) for x in range(axes))
    return _BIAS.format(axes=parts, near=", ".join(f"near_{x}" for x in range(axes)))

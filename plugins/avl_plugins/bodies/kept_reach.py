"""Blocks and windows of rows that are kept otherwise than as computed.

Steps, and chunks of which each row sees all before it, go to the op of such rows that kernels may
take over. Others see numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from avl_plugins.bodies.attention_body import filled
from avl_plugins.bodies.function import function_proto
from avl_plugins.bodies.kept_function import kept_function
from avl_plugins.bodies.reach_body import PLAIN_BLOCK, PLAIN_WINDOW
from avl_plugins.schema import (
    BLOCK_CACHE_ATTENTION,
    BLOCK_CACHE_PROMPT,
    BLOCK_OPS,
    ROW_OPS,
    WINDOW_CACHE_ATTENTION,
    WINDOW_CACHE_PROMPT,
    WINDOW_OPS,
    Op,
    RowType,
    several_of,
)

_CHOICE = """
    rows_now = Shape <start = 2, end = 3> (row_weights)
    one_row = Constant <value_ints = [1]> ()
    is_step = Equal (rows_now, one_row)
    {made} = If (is_step) <
        then_branch = step () => ({step_made})
        { {step_made} = avl.{plain} <scale: float = @scale> ({given}) },
        else_branch = prompt () => ({prompt_made})
        {
            {is_plain}
            {prompt_made} = If (plain) <
                then_branch = plain_prompt () => ({plain_made})
                { {plain_made} = avl.{plain} <scale: float = @scale> ({given}) },
                else_branch = masked_prompt () => ({masked_made})
                { {masked_made} = avl.{masked} <{attributes}> ({given}, {more}) }
            >
        }
    >
"""
_PARTS = {
    BLOCK_CACHE_ATTENTION.name: (BLOCK_OPS, BLOCK_CACHE_PROMPT, PLAIN_BLOCK),
    WINDOW_CACHE_ATTENTION.name: (WINDOW_OPS, WINDOW_CACHE_PROMPT, PLAIN_WINDOW),
}


def kept_reach_functions(
    kept: RowType, reach: Op, sizes: Sequence[int], opset: int = 23
) -> tuple[onnx.FunctionProto, onnx.FunctionProto]:
    """The op of one way to keep rows with another reach, and what it calls of its own.

    A model needs `kept_attention_function` and `reach_functions` too.

    Args:
        reach: BLOCK_CACHE_ATTENTION or WINDOW_CACHE_ATTENTION.
        sizes: of heads, ascending.

    Raises:
        KeyError: it is none of the two, or rows are kept as computed.
    """
    ops, computed, is_plain = _PARTS[reach.name]
    plain, op = ROW_OPS[kept.name], ops[kept.name]
    masked = several_of(op)
    names = [value.name for value in op.outputs]
    made = {
        f"{part}_made": ", ".join(f"{part}_{name}" for name in names)
        for part in ("step", "prompt", "plain", "masked")
    }
    body = filled(
        _CHOICE,
        is_plain=is_plain,
        made=", ".join(names),
        plain=plain.name,
        masked=masked.name,
        given=", ".join(value.name for value in plain.inputs),
        more=", ".join(value.name for value in op.inputs[len(plain.inputs) :]),
        attributes=", ".join(f"{one.name}: {one.kind} = @{one.name}" for one in op.attributes),
        **made,
    )
    return (
        function_proto(op, body, opset),
        kept_function(masked, computed, kept, sizes, opset),
    )

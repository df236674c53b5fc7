"""Attention of blocks and windows in standard ops: a mask more, where it is needed.

Steps, and chunks of which each row sees all before it, go to the functions that kernels may take
over.
"""

from __future__ import annotations

from avl_plugins.bodies.attention_body import attention_body, filled, prompt_body

# Several rows: a function that kernels take over where each sees all before it, and no later one.
_SEVERAL = """
            {is_plain}
            prompt_out, prompt_active, prompt_parked, prompt_new = If (plain) <
                then_branch = plain_prompt ()
                    => (plain_out, plain_active, plain_parked, plain_new)
                {
                    plain_out, plain_active, plain_parked, plain_new =
                        avl.SplitCachePrompt <scale: float = @scale> ({inputs})
                },
                else_branch = masked_prompt ()
                    => (masked_out, masked_active, masked_parked, masked_new)
                {
                    masked_out, masked_active, masked_parked, masked_new =
                        avl.{masked} ({inputs}, {more})
                }
            >
"""

_CAUSAL = """
            c_zero = Constant <value_int = 0> ()
            c_one = Constant <value_int = 1> ()
            count = Squeeze (rows_now)
            index = Range (c_zero, count, c_one)
            counted = Add (index, c_one)
            ahead = Sub (row_ends, counted)
            furthest = ReduceMax <keepdims = 0> (ahead)
            is_causal = Equal (furthest, c_zero)
"""
# Nodes that make `plain` of `rows_now`: whether each row sees all before it, and no later one.
PLAIN_BLOCK = f"{_CAUSAL} plain = Identity (is_causal)"
# Of the lengths in use the oldest row's position, counted back from the newest's.
PLAIN_WINDOW = f"""{_CAUSAL}
            row_axis = Constant <value_ints = [1]> ()
            held = Shape <start = 1, end = 2> (active_positions)
            held_size = Squeeze (held)
            held_index = Range (c_zero, held_size, c_one)
            held_end = Unsqueeze (active_len, row_axis)
            in_use = Less (held_index, held_end)
            newest = ReduceMax <keepdims = 0> (row_positions)
            active_used = Where (in_use, active_positions, newest)
            oldest_active = ReduceMin <keepdims = 0> (active_used)
            oldest_new = ReduceMin <keepdims = 0> (row_positions)
            oldest = Min (oldest_active, oldest_new)
            back = Sub (newest, oldest)
            c_window = Constant <value_int: int = @window> ()
            is_near = Less (back, c_window)
            plain = And (is_causal, is_near)"""

_ENDS = """
    axes_1_3 = Constant <value_ints = [1, 3]> ()
    ends_column = Unsqueeze (row_ends, axes_1_3)
    {sees} = Less (new_index, ends_column)"""

_NEW_WINDOW = """
    new_row = Unsqueeze (row_positions, axes_1_2)
    new_near = Greater (new_row, least)
    sees = And (ahead, new_near)"""

_ACTIVE_WINDOW = """
    axes_of_column = Constant <value_ints = [1, 3]> ()
    axes_1_2 = Constant <value_ints = [1, 2]> ()
    positions_column = Unsqueeze (row_positions, axes_of_column)
    window = Constant <value_int: int = @window> ()
    least = Sub (positions_column, window)
    positions_used = Slice (active_positions, begin, active_top, axis_1)
    active_row = Unsqueeze (positions_used, axes_1_2)
    active_near = Greater (active_row, least)
    active_both = And (active_has, active_near)"""


def block_body() -> str:
    """BlockCacheAttention's nodes."""
    return _choice("BlockCachePrompt <scale: float = @scale>", PLAIN_BLOCK, "row_ends")


def window_body() -> str:
    """WindowCacheAttention's nodes."""
    masked = "WindowCachePrompt <scale: float = @scale, window: int = @window>"
    return _choice(masked, PLAIN_WINDOW, "row_ends, row_positions, active_positions")


def block_prompt_body(heads: tuple[int, int] | None) -> str:
    """BlockCachePrompt's nodes; `heads` as for `prompt_body`."""
    return prompt_body(heads, filled(_ENDS, sees="sees"))


def window_prompt_body(heads: tuple[int, int] | None) -> str:
    """WindowCachePrompt's nodes; `heads` as for `prompt_body`."""
    new_sees = filled(_ENDS, sees="ahead") + _NEW_WINDOW
    return prompt_body(heads, new_sees, _ACTIVE_WINDOW, "active_both")


def _choice(masked: str, is_plain: str, more: str) -> str:
    return attention_body(filled(_SEVERAL, is_plain=is_plain, masked=masked, more=more))

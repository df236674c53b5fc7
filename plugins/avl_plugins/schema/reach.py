"""Attention of layers whose rows see others than all before them, by the ways to keep rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from avl_plugins.schema.extended import extended
from avl_plugins.schema.ops import COMPUTED, ROW_OPS, Attribute, Op, Value

_ROW_ENDS = Value(
    "row_ends", "int64", ("B", "S"), "new rows that each new row sees, it and those before at least"
)
REACH = (
    _ROW_ENDS,
    Value("row_positions", "int64", ("B", "S"), "positions of the new rows, ascending"),
    Value("active_positions", "int64", ("B", "A"), "positions of the active rows"),
)


def _block(op: Op) -> Op:
    doc = (
        f"{op.name} whose new row s sees the new rows before row_ends[b, s], so that rows of a "
        "block, as those of a picture, see one another."
    )
    return extended(op, "Block", doc, (_ROW_ENDS,))


def _window(op: Op) -> Op:
    doc = (
        f"{_block(op).name} whose row at position p sees no active and no new row at p - "
        "window or before; parked rows have no positions and are all seen. Of one new row, "
        "S = 1, the active rows in use must all lie within the window: who runs a step drops "
        "those that it leaves behind."
    )
    window = Attribute("window", "int", "positions that a row sees, its own included")
    return extended(op, "Window", doc, REACH, (window,))


def several_of(op: Op) -> Op:
    """The part of one of these of several new rows, as SPLIT_CACHE_PROMPT is."""
    return dataclasses.replace(op, name=op.name.replace("CacheAttention", "CachePrompt"))


BLOCK_OPS: Mapping[str, Op] = {name: _block(op) for name, op in ROW_OPS.items()}
WINDOW_OPS: Mapping[str, Op] = {name: _window(op) for name, op in ROW_OPS.items()}
BLOCK_CACHE_ATTENTION = BLOCK_OPS[COMPUTED.name]
WINDOW_CACHE_ATTENTION = WINDOW_OPS[COMPUTED.name]
BLOCK_CACHE_PROMPT = several_of(BLOCK_CACHE_ATTENTION)
WINDOW_CACHE_PROMPT = several_of(WINDOW_CACHE_ATTENTION)

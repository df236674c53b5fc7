"""Attention of layers whose rows see others than all before them; rows are kept as computed."""

from __future__ import annotations

import dataclasses

from avl_plugins.schema.ops import SPLIT_CACHE_ATTENTION, Attribute, Value

_ROW_ENDS = Value(
    "row_ends", "int64", ("B", "S"), "new rows that each new row sees, it and those before at least"
)
BLOCK_CACHE_ATTENTION = dataclasses.replace(
    SPLIT_CACHE_ATTENTION,
    name="BlockCacheAttention",
    doc=(
        "SplitCacheAttention whose new row s sees the new rows before row_ends[b, s], so that rows "
        "of a block, as those of a picture, see one another."
    ),
    inputs=(*SPLIT_CACHE_ATTENTION.inputs, _ROW_ENDS),
)
WINDOW_CACHE_ATTENTION = dataclasses.replace(
    SPLIT_CACHE_ATTENTION,
    name="WindowCacheAttention",
    doc=(
        "BlockCacheAttention whose row at position p sees no active and no new row at p - window "
        "or before; parked rows have no positions and are all seen. Of one new row, S = 1, the "
        "active rows in use must all lie within the window: who runs a step drops those that it "
        "leaves behind."
    ),
    inputs=(
        *BLOCK_CACHE_ATTENTION.inputs,
        Value("row_positions", "int64", ("B", "S"), "positions of the new rows, ascending"),
        Value("active_positions", "int64", ("B", "A"), "positions of the active rows"),
    ),
    attributes=(
        *SPLIT_CACHE_ATTENTION.attributes,
        Attribute("window", "int", "positions that a row sees, its own included"),
    ),
)
# Their parts, of several new rows, as SPLIT_CACHE_PROMPT is.
BLOCK_CACHE_PROMPT = dataclasses.replace(BLOCK_CACHE_ATTENTION, name="BlockCachePrompt")
WINDOW_CACHE_PROMPT = dataclasses.replace(WINDOW_CACHE_ATTENTION, name="WindowCachePrompt")

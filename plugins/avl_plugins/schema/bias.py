"""Attention whose scores are added to before the softmax."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from avl_plugins.schema.extended import extended
from avl_plugins.schema.ops import COMPUTED, ROW_OPS, Op, Value

_BIASES = (
    Value("bias_active", "float32", ("B", "F", "S", "A"), "added to scores of active rows"),
    Value("bias_parked", "float32", ("B", "E", "S", "P"), "added to scores of parked rows"),
    Value("bias_new", "float32", ("B", "E", "S", "S"), "added to scores of the new rows"),
)


def _biased(op: Op) -> Op:
    doc = (
        f"{op.name} that adds a bias to each scaled score before the softmax. F is Hkv, or 1 "
        "where the heads have the same. A bias of rows that are not seen is finite."
    )
    return extended(op, "Biased", doc, _BIASES)


# By the ways to keep rows, as ROW_OPS.
BIASED_OPS: Mapping[str, Op] = {name: _biased(op) for name, op in ROW_OPS.items()}
BIASED_CACHE_ATTENTION = BIASED_OPS[COMPUTED.name]
# Its parts, as those of SplitCacheAttention: what CPU kernels take over.
BIASED_CACHE_STEP = dataclasses.replace(BIASED_CACHE_ATTENTION, name="BiasedCacheStep")
BIASED_CACHE_PROMPT = dataclasses.replace(BIASED_CACHE_ATTENTION, name="BiasedCachePrompt")

_ROW = Value("row_standing", "int64", ("B", "S", "Z"), "of the new rows")
_NEAR = Value("nearness", "float32", ("X", "M"), "share of D(distance) on each axis of RoPE")

# RESTORE (arXiv 2606.01711). Where a row stands: Z = X + 1 numbers, its position on each of the X
# axes of RoPE, below M, and how many tokens it stands for; 0 of these: nothing is added for it.
STANDING_BIAS = Op(
    name="StandingBias",
    doc=(
        "What RESTORE adds to the score of a row m on a key n that stands for s tokens: "
        "ln(s (2 - D(m, n))), D = sum over axes x of nearness[x, |m_x - n_x|]; 0 where the row or "
        "the key stands for none."
    ),
    inputs=(
        _NEAR,
        _ROW,
        Value("key_standing", "int64", ("B", "F", "K", "Z"), "of the keys"),
    ),
    outputs=(Value("bias", "float32", ("B", "F", "S", "K"), "added to scores"),),
)
STANDING = (
    _NEAR,
    _ROW,
    Value("active_standing", "int64", ("B", "F", "A", "Z"), "of the active rows"),
    Value("parked_standing", "int64", ("B", "E", "P", "Z"), "of the parked rows"),
)


def _restored(op: Op) -> Op:
    doc = (
        f"{op.name} where no new row stands for any token, else the same with the biases of "
        "StandingBias. Rows at or past a length stand for anything below M; where nothing is "
        "added, of cached rows any number of them is given."
    )
    return extended(op, "Restored", doc, STANDING)


RESTORED_OPS: Mapping[str, Op] = {name: _restored(op) for name, op in ROW_OPS.items()}
RESTORED_CACHE_ATTENTION = RESTORED_OPS[COMPUTED.name]

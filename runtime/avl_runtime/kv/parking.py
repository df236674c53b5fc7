"""Rows that are parked in fewer bits than active ones, and widened where they become active.

A parked number is (code - middle) * scale with 4 or 2 bits a code (`schema.RowType`), one scale for
a row's key and one for its value, so that a row moves alone. Rows were rotated before, which makes
their numbers about normal: codes are found by the step that errs least for normal numbers
(Max, 1960), and then the scale that fits the codes best, by least squares. What has been widened
and comes back is as it was, but for a code in hundreds at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avl_plugins.schema import MOST_CODE
from avl_runtime.kv.by_layer import Floats
from avl_runtime.kv.cache import Array

STEPS = {4: 0.3352, 2: 0.9957}  # between codes, in root mean squares of a row


def narrow(planes: Sequence[Array], bits: int) -> list[Array]:
    """Parked rows of active ones.

    Args:
        planes: codes of 8 bits of keys and values [..., D], and scales of each [..., 1].

    Returns:
        Codes [..., D * bits / 8] uint8 and scales [..., 1] float32 in the same order.
    """
    keys, values, key_scales, value_scales = planes
    made = [_packed(keys * key_scales, bits), _packed(values * value_scales, bits)]
    return [made[0][0], made[1][0], made[0][1], made[1][1]]


def widen(planes: Sequence[Array], bits: int) -> list[Array]:
    """Active rows of parked ones; see `narrow`."""
    keys, values, key_scales, value_scales = planes
    made = [coded(_numbers(keys, key_scales, bits)), coded(_numbers(values, value_scales, bits))]
    return [made[0][0], made[1][0], made[0][1], made[1][1]]


def _packed(rows: Floats, bits: int) -> tuple[NDArray[np.uint8], Floats]:
    middle = (2**bits - 1) / 2
    size = np.sqrt(np.mean(np.square(rows), -1, keepdims=True))
    step = np.where(size > 0, size, 1) * np.float32(STEPS[bits])
    centred = np.clip(np.floor(rows / step) + np.float32(0.5), -middle, middle)
    scale = (rows * centred).sum(-1, keepdims=True) / np.square(centred).sum(-1, keepdims=True)
    codes = (centred + middle).astype(np.uint8)
    each = rows.shape[-1] * bits // 8
    packed = np.zeros((*rows.shape[:-1], each), np.uint8)
    for part in range(8 // bits):
        packed |= codes[..., part * each : (part + 1) * each] << part * bits
    return packed, scale.astype(np.float32)


def _numbers(packed: NDArray[np.uint8], scale: Floats, bits: int) -> Floats:
    codes = [packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)]
    middle = np.float32((2**bits - 1) / 2)
    return (np.concatenate(codes, -1).astype(np.float32) - middle) * scale


def coded(rows: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Rows [..., D] as codes of 8 bits, and scales of each [..., 1] (`schema.ATTENTION`)."""
    scale = np.abs(rows).max(-1, keepdims=True) / np.float32(MOST_CODE)
    codes = np.rint(rows / np.where(scale > 0, scale, 1)).astype(np.int8)
    return codes, scale

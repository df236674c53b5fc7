"""Positions of a prompt's tokens for RoPE on one axis or on three (M-RoPE, arXiv 2409.12191)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from avl_runtime.vision.media import Block


def prompt_positions(
    mask: NDArray[np.bool_], blocks: Sequence[Block], axes: int
) -> tuple[NDArray[np.int64], int]:
    """Positions counted from the prompt's start, and where the next token goes.

    On three axes text counts up on all of them, and the tokens of a block take its positions. The
    next token goes behind the furthest: a long video's times may pass the text behind it
    (transformers places both so).

    Args:
        mask: [N], which tokens are visual.
        blocks: for all visual tokens, in order; not looked at on one axis.
        axes: 1 or 3.

    Returns:
        [axes, N] int64 and the next position.
    """
    if axes == 1:
        return np.arange(len(mask))[None], len(mask)
    found = np.zeros((axes, len(mask)), np.int64)
    edges = np.flatnonzero(np.diff(mask, prepend=~mask[:1], append=~mask[-1:]))
    waiting, start = iter(blocks), 0
    for begin, end in pairwise(edges.tolist()):
        if not mask[begin]:
            found[:, begin:end] = start + np.arange(end - begin)
            start += end - begin
            continue
        place = begin
        while place < end:  # pictures may follow each other without text in between
            block = next(waiting)
            tokens = block.positions.shape[1]
            found[:, place : place + tokens] = start + block.positions
            start += block.advance
            place += tokens
    return found, int(found.max(initial=-1)) + 1

"""A prompt as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avl_runtime.vision import Media, prompt_positions


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What prefill takes.

    Attributes:
        input_ids: [N] int64.
        image_mask: [N] bool, True at tokens of pictures and videos.
        media: pictures and videos in prompt order.
        positions: [axes, N] int64, RoPE positions counted from where the prompt starts.
        next_position: where the token behind the prompt goes.
    """

    input_ids: NDArray[np.int64]
    image_mask: NDArray[np.bool_]
    media: tuple[Media, ...]
    positions: NDArray[np.int64]
    next_position: int

    @classmethod
    def of(
        cls, input_ids: NDArray[np.int64], visual: Sequence[int], media: Sequence[Media], axes: int
    ) -> Prompt:
        """Work out mask and positions; `visual` are the ids of visual tokens."""
        mask = np.zeros(len(input_ids), np.bool_)
        for token in visual:  # a few, for which np.isin is slow
            mask |= input_ids == token
        blocks = [block for part in media for block in part.blocks]
        positions, following = prompt_positions(mask, blocks, axes)
        return cls(input_ids, mask, tuple(media), positions, following)

    def places(self) -> list[tuple[Media, NDArray[np.int64]]]:
        """Each picture and video, and the numbers of its tokens, in order."""
        where, ends = np.flatnonzero(self.image_mask), np.cumsum([one.tokens for one in self.media])
        return list(zip(self.media, np.split(where, ends), strict=False))

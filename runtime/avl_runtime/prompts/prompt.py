"""A prompt as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avl_runtime.package.manifest import CAUSAL, Reach
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
        ends: [N] int64, for each token the number of the first one behind it that it does not
            attend to; None where each attends to those before it alone.
        asked: the text that the user said last, for policies that choose by it.
    """

    input_ids: NDArray[np.int64]
    image_mask: NDArray[np.bool_]
    media: tuple[Media, ...]
    positions: NDArray[np.int64]
    next_position: int
    ends: NDArray[np.int64] | None = None
    asked: str = ""

    @classmethod
    def of(
        cls,
        input_ids: NDArray[np.int64],
        visual: Sequence[int],
        media: Sequence[Media],
        axes: int,
        reach: Reach = CAUSAL,
        asked: str = "",
    ) -> Prompt:
        """Work out mask, positions and ends; `visual` are the ids of visual tokens."""
        mask = np.zeros(len(input_ids), np.bool_)
        for token in visual:  # a few, for which np.isin is slow
            mask |= input_ids == token
        blocks = [block for part in media for block in part.blocks]
        positions, following = prompt_positions(mask, blocks, axes)
        ends = block_ends(mask, reach)
        return cls(input_ids, mask, tuple(media), positions, following, ends, asked)

    def places(self) -> list[tuple[Media, NDArray[np.int64]]]:
        """Each picture and video, and the numbers of its tokens, in order."""
        where, ends = np.flatnonzero(self.image_mask), np.cumsum([one.tokens for one in self.media])
        return list(zip(self.media, np.split(where, ends), strict=False))


def block_ends(image_mask: NDArray[np.bool_], reach: Reach) -> NDArray[np.int64] | None:
    """`Prompt.ends` of tokens of which `image_mask` [N] are visual."""
    if reach.blocks is None:
        return None
    count = len(image_mask)
    if reach.blocks == "prompt":
        return np.full(count, count)
    # The next token that is no picture's, which ends a picture's run, and what is behind a text's.
    stops = np.where(image_mask, count, np.arange(count))
    ends = np.minimum.accumulate(stops[::-1])[::-1]
    return np.where(image_mask, ends, np.arange(count) + 1)

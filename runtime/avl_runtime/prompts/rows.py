"""A prompt as the decoder reads it: embeddings, positions, and features for later layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class PromptRows:
    """G rows of a prompt of N tokens; G is N unless tokens were chosen.

    Attributes:
        token_ids, image_mask: [N]; what the prompt adds to the conversation.
        hidden: [G, C], token embeddings with encoder features at visual tokens.
        deepstack: [K, G, C], added to what the decoder's K deepstack layers put out.
        position_ids: [axes, G] int64, counted from where the prompt starts.
        next_position: where the token behind the prompt goes, counted from there.
        ends: [G] int64, as `Prompt.ends`.
        chosen: [G] int64, the tokens that the rows are of, ascending; None: all of them.
        standing_for: [G] int64, how many tokens each row stands for; None: one each.
        attention: [N, A], as `Features.attention`, where tokens are yet to be chosen.
    """

    token_ids: NDArray[np.int64]
    image_mask: NDArray[np.bool_]
    hidden: NDArray[Any]
    deepstack: NDArray[Any]
    position_ids: NDArray[np.int64]
    next_position: int
    ends: NDArray[np.int64] | None = None
    chosen: NDArray[np.int64] | None = None
    standing_for: NDArray[np.int64] | None = None
    attention: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def given(self) -> NDArray[np.int64]:
        """[G], the tokens that the rows are of."""
        return np.arange(len(self.token_ids)) if self.chosen is None else self.chosen

    @property
    def counts(self) -> NDArray[np.int64]:
        """[G], how many tokens each row stands for."""
        ones = np.ones(len(self.given), np.int64)
        return ones if self.standing_for is None else self.standing_for

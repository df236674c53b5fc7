"""A prompt as the decoder reads it: embeddings, positions, and features for later layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class PromptRows:
    """N rows of a prompt.

    Attributes:
        token_ids, image_mask: [N]; what the prompt adds to the conversation.
        hidden: [N, C], token embeddings with encoder features at visual tokens.
        deepstack: [K, N, C], added to what the decoder's K deepstack layers put out.
        position_ids: [axes, N] int64, counted from where the prompt starts.
        next_position: where the token behind the prompt goes, counted from there.
        ends: as `Prompt.ends`.
    """

    token_ids: NDArray[np.int64]
    image_mask: NDArray[np.bool_]
    hidden: NDArray[Any]
    deepstack: NDArray[Any]
    position_ids: NDArray[np.int64]
    next_position: int
    ends: NDArray[np.int64] | None = None

"""What an action sees of a conversation's rows, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Fates = npt.NDArray[np.int8]

ACTIVE: Final = 0  # read by every step
PARKED: Final = 1  # read by steps that ask for parked rows
DROPPED: Final = 2  # gone, and its memory with it

# Columns of `Picture.attention`.
BY_CLASS: Final = 0
LATE: Final = 1
MIDDLE: Final = 2


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture or a video as it is before the decoder's first layer, of n tokens.

    Attributes:
        features: [n, C] float32, what the decoder would read at its tokens.
        question: [m, C] float32, embeddings of the text that the user said last.
        places: [3, n] int64, of each token the raster that it lies in (a frame, an overview, or
            the picture), and its row and column there; -1 where it shows no place (a line break).
        number: how many pictures and videos the conversation has before it.
        moving: whether it is a video: its rasters are frames, in the order of time.
        attention: [n, 3] float32, what each token receives in the vision encoder, mean of heads:
            BY_CLASS from the class token in the last layer that features come from (from all
            tokens, where there is no class token), LATE from all tokens in that layer, and MIDDLE
            from all tokens in the layer at 3/8 of the depth; [n, 0] where no package tells it.
    """

    features: Scores
    question: Scores
    places: Indices
    number: int
    moving: bool
    attention: Scores = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def at(self, tokens: Indices) -> Picture:
        """The picture as if it had these tokens only."""
        features, places = self.features[tokens], self.places[:, tokens]
        attention = self.attention[tokens] if len(self.attention) else self.attention
        return replace(self, features=features, places=places, attention=attention)


@dataclass(frozen=True, slots=True)
class View:
    """Rows of one conversation in L layers that follow each other.

    Image rows are the same in every KV head of a layer: their arrays are [L, n]. Text rows differ:
    [L, Hkv, n]. Rows come in any order, but ANY rows, of one layer, [1, Hkv, n], by position.

    The arrays are read-only: the rows themselves lie behind them.

    Attributes:
        positions: int64, each row's token in its conversation.
        attention: float32, shaped like `positions`. Of image rows: what the last query row gives
            each (or the mean of `Action.raters`), over KV heads averaged or summed, of text rows:
            what all text rows have given each so far (H2O), of ANY rows what the probes together
            have given each. Zeros if the action's ranking does not ask for it.
        layer: the first of the L layers.
        step: decode steps so far, 0 after a prompt; None between two layers of a prompt, and before
            them.
        total: all tokens of the kind that the decoder was given in the conversation, dropped ones
            included; of text, those behind the first image token; between two layers, the prompt's
            own; before them, the picture's.
        picture: before the first layer, what its tokens are; they are [n] then, of one picture.
        probes: of ANY rows, positions of the layer's rows that have given attention, ascending.
        image: of ANY rows, which are image tokens, bool, shaped like `positions`.
        keys: [Hkv, n, D] float32, keys of ANY rows as they are cached, where the action merges rows
            and is asked how, empty elsewhere. After RoPE, and of rows of 8 bits turned by an
            orthonormal matrix, which leaves their products as they are.
    """

    positions: Indices
    attention: Scores
    layer: int
    step: int | None
    total: int
    picture: Picture | None = None
    probes: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    image: Mask = field(default_factory=lambda: np.empty(0, np.bool_))
    keys: Scores = field(default_factory=lambda: np.empty(0, np.float32))

    def __post_init__(self) -> None:
        for name in ("positions", "attention"):
            array = getattr(self, name).view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)


def fates(active: Mask, parked: Mask | None = None) -> Fates:
    """Fates of rows: those `active`, else those `parked`; the others are dropped."""
    found = np.where(active, np.int8(ACTIVE), np.int8(DROPPED))
    if parked is not None:
        found[parked & ~active] = PARKED
    return found

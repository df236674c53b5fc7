"""SparseVLM without merging: what the question looks at, in stages (arXiv 2410.04417, ICML 2025).

Text behind the last picture is not all about it. Its rows that pictures resemble most, the raters,
are chosen once, by the embeddings that the decoder reads; image tokens are ranked by their
attention alone.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies.action import Action
from avl_plugins.policies.base import Policy
from avl_plugins.policies.cached.retain import last_rows
from avl_plugins.policies.checks import check_count, check_fraction
from avl_plugins.policies.prune import Prune
from avl_plugins.policies.view import Indices, Mask, Scores

BLOCK = 1024  # image tokens that are compared at once


@dataclass(frozen=True, slots=True)
class RatedPrune(Prune):
    """As Prune, by the mean of the raters' attention."""

    rates: ClassVar[bool] = True

    def raters(self, positions: Indices, image: Mask, embeddings: Scores) -> Indices:
        """Text rows behind the last picture with more of the image tokens' likeness than the mean.

        That is the mean over the image tokens of a softmax over these rows of dot products of
        embeddings. All of them, where they are equal, or there is one.
        """
        behind = last_rows(positions, image)
        if not image.any():
            return behind
        text = embeddings[len(positions) - len(behind) :].astype(np.float64)
        of, likeness = np.flatnonzero(image), np.zeros(len(behind))
        for begin in range(0, len(of), BLOCK):
            rows = embeddings[of[begin : begin + BLOCK]].astype(np.float64) @ text.T
            shares = np.exp(rows - rows.max(1, keepdims=True))
            likeness += (shares / shares.sum(1, keepdims=True)).sum(0)
        # All of them sum up to the image tokens' number.
        chosen = behind[likeness * len(behind) > len(of) * (1 + 1e-9)]
        return chosen if len(chosen) else behind


@dataclass(frozen=True, slots=True)
class SparseVLM(Policy):
    """Before each of `layers` keep so much of a prompt's image tokens as `keep` says.

    Both are numbers with a slash between them, ascending and descending, as many of the one as of
    the other. Tokens are ranked by the raters' attention in the layer before.
    """

    layers: str = "3/7/16"
    keep: str = "0.526/0.191/0.0625"

    name: ClassVar[str] = "sparsevlm"

    def __post_init__(self) -> None:
        self._stages()

    def actions(self) -> tuple[Action, ...]:
        return tuple(RatedPrune(layer, keep) for layer, keep in self._stages())

    def _stages(self) -> list[tuple[int, float]]:
        """
        Raises:
            PolicyError: an option does not say what it should.
        """
        layers = [int(one) for one in _numbers("layers", self.layers, r"[0-9]{1,9}", "3/7/16")]
        written = _numbers("keep", self.keep, r"[0-9]+\.?[0-9]*|\.[0-9]+", "0.5/0.2/0.06")
        keeps = [float(one) for one in written]
        for layer in layers:
            check_count(self.name, "layers", layer, 1, "ranking needs the attention of one layer")
        for keep in keeps:
            check_fraction(self.name, "keep", keep)
        rise = all(one < other for one, other in itertools.pairwise(layers))
        fall = all(one >= other for one, other in itertools.pairwise(keeps))
        if len(layers) != len(keeps) or not rise or not fall:
            raise PolicyError(
                "sparsevlm: expected layers that rise, and for each a share, which fall, found "
                f"layers={self.layers} and keep={self.keep}; write layers=3/7,keep=0.5/0.2"
            )
        return list(zip(layers, keeps, strict=True))


def _numbers(option: str, text: object, number: str, usual: str) -> list[str]:
    parts = text.split("/") if isinstance(text, str) else []
    if not parts or not all(re.fullmatch(number, part) for part in parts):
        raise PolicyError(
            f"sparsevlm: expected {option} as numbers with a slash between them, found "
            f"{quoted(text)}; write {option}={usual}"
        )
    return parts

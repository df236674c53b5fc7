"""HoloV: a quota for each part of a picture, by attention (arXiv 2510.02912, NeurIPS 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from avl_plugins.policies.checks import check_count
from avl_plugins.policies.embedded.select import Selecting
from avl_plugins.policies.embedded.similar import Doubles, directions
from avl_plugins.policies.view import BY_CLASS, Indices, Picture

VARIANCE = 0.09  # the paper's weight of it


@dataclass(frozen=True, slots=True)
class HoloV(Selecting):
    """A picture in `parts` runs of tokens, of which each keeps those with most attention.

    As published a part's quota follows its mean attention: the variance of cosines within a part
    is scaled so that it cancels. With `variance` it is scaled over the whole picture instead, which
    is what the paper says that it does, and counts among the tokens of a part too.
    """

    parts: int = 16
    variance: bool = False

    name: ClassVar[str] = "holov"
    looks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Selecting.__post_init__(self)
        check_count(self.name, "parts", self.parts, 1, "a picture is divided into them")

    def pick(self, picture: Picture, count: int) -> Indices:
        scores = picture.attention[:, BY_CLASS].astype(np.float64)
        tokens = len(scores)
        parts = np.array_split(np.arange(tokens), min(self.parts, tokens))
        if self.variance:
            spread = np.concatenate([_spread(picture, part) for part in parts])
            if spread.any():
                scores += VARIANCE * scores.mean() / spread.mean() * spread
        means = np.array([scores[part].mean() for part in parts])
        quotas = _quotas(means, np.array([len(part) for part in parts]), count)
        kept = [
            part[(-scores[part]).argsort(kind="stable")[:quota]]
            for part, quota in zip(parts, quotas.tolist(), strict=True)
        ]
        return np.concatenate(kept)


def _spread(picture: Picture, part: Indices) -> Doubles:
    """Of each token of a part: the variance of its cosines to the others, its own counted as 0."""
    near = directions(picture.features[part]).among()
    np.fill_diagonal(near, 0)
    found: Doubles = near.var(1)
    return found


def _quotas(weights: Doubles, sizes: Indices, count: int) -> Indices:
    """How many tokens each part keeps: by weight, rounded down; what is left, the heaviest take."""
    whole = weights.sum()
    shares = weights / whole if whole else np.full(len(weights), 1 / len(weights))
    quotas: Indices = np.minimum(sizes, np.floor(shares * count).astype(np.int64))
    left = count - int(quotas.sum())
    for part in (-weights).argsort(kind="stable").tolist():
        more = min(left, int(sizes[part] - quotas[part]))
        quotas[part] += more
        left -= more
    return quotas

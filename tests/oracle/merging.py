"""Into which tokens RESTORE's merging averages those that are not chosen: float64, brute force.

Written from the paper (arXiv 2606.01711). This file must not import avl_runtime or avl_plugins.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from oracle.reading import Shown
from oracle.selecting import Draws, Rows, cosine


def anchors(features: Rows, picked: list[int], count: int, draws: Draws) -> dict[int, list[int]]:
    """`count` anchors, at least one, among the tokens not picked, with those that join each."""
    rest = [i for i in range(len(features)) if i not in picked]
    near = {(i, j): cosine(features[i], features[j]) for i in rest for j in rest}
    sums = {i: sum(near[i, j] for j in rest) for i in rest}
    scores = []
    for i in rest:
        above = [near[i, j] for j in rest if (sums[j], -j) > (sums[i], -i)]
        scores.append(sums[i] * (1 - max(above, default=-1.0)))
        draws.gap = min([draws.gap, *(abs(sums[j] - sums[i]) for j in rest if j < i)])
    found: dict[int, list[int]] = {i: [] for i in sorted(draws.take(scores, rest, count))}
    for i in rest:
        if i not in found:
            found[draws.best([near[i, anchor] for anchor in found], list(found))].append(i)
    return found


def merged(shown: Shown, groups: dict[int, list[int]], moves: bool) -> Shown:
    """A turn in which the row of each token of `groups` is the mean of its own and the others'.

    Args:
        groups: numbers of tokens in the turn.
        moves: whether it stands at the median of their positions, of two in the middle the lower.
    """
    embeds, positions = shown.embeds.clone(), shown.positions.clone()
    deepstack, counts = shown.deepstack.clone(), torch.ones(len(shown.visual), dtype=torch.int64)
    place = {int(token): i for i, token in enumerate(torch.nonzero(shown.visual)[:, 0])}
    for token, others in groups.items():
        group = [token, *others]
        embeds[token] = _mean(shown.embeds[group])
        for layer, stack in zip(deepstack, shown.deepstack, strict=True):
            layer[place[token]] = _mean(stack[[place[one] for one in group]])
        counts[token] = len(group)
        if moves:
            positions[:, token] = shown.positions[:, group].median(1).values  # torch's is the lower
    return replace(shown, embeds=embeds, positions=positions, deepstack=deepstack, counts=counts)


def _mean(rows: Tensor) -> Tensor:
    return rows.double().mean(0).to(rows.dtype)


def of_turn(groups: dict[int, list[int]], at: np.ndarray) -> dict[int, list[int]]:
    """Groups of a picture's tokens as numbers in the turn, where its tokens are `at`."""
    return {int(at[one]): [int(at[i]) for i in others] for one, others in groups.items()}

"""Which tokens of a picture methods choose by the encoder's attention: float64 and brute force.

Written from the papers and what is known of their code, with none of avl's. This file must not
import avl_runtime or avl_plugins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from oracle.selecting import Draws, Rows, cosine

# features [n, C]; class, late and middle attention [n] each; rows and columns of the grid
Look = tuple[Rows, Rows, Rows, Rows, tuple[int, int]]


def visionzip(look: Look, count: int, draws: Draws) -> tuple[list[int], dict[int, list[int]]]:
    """What is chosen, and for each contextual token those that join it."""
    features, by_class, _, _, _ = look
    tokens = range(len(features))
    many = min(count - 1, round(10 / 64 * count))
    dominant = draws.take(by_class.tolist(), tokens, count - many)
    rest = [i for i in tokens if i not in dominant]
    targets: list[int] = []
    if many:
        step = len(rest) // many
        targets = [rest[i * step] for i in range(many)]
    joined: dict[int, list[int]] = {target: [] for target in targets}
    for token in rest:
        if targets and token not in targets:
            near = [cosine(features[token], features[target]) for target in targets]
            joined[draws.best(near, targets)].append(token)
    return [*dominant, *targets], joined


def vispruner(look: Look, count: int, draws: Draws) -> list[int]:
    features, by_class, _, _, _ = look
    ranked = Draws().take(by_class.tolist(), range(len(features)), len(features))
    gaps = -np.diff(np.sort(by_class)[::-1])
    draws.gap = min(draws.gap, float(gaps[gaps > 0].min()))  # all of the order counts
    chosen, left = ranked[: count // 2], ranked[count // 2 :]
    while len(left) > count - count // 2:
        even, odd = left[0::2], left[1::2]
        alike = [max(cosine(features[i], features[j]) for j in odd) for i in even]
        order = sorted(zip(alike, even, strict=True), key=lambda pair: (-pair[0], pair[1]))
        steps = -np.diff([one for one, _ in order])
        draws.gap = min([draws.gap, *steps.tolist()])
        drop = min(8, len(left) - (count - count // 2), len(even))
        left = [token for _, token in order[drop:]] + odd
    return chosen + left


def hiprune(look: Look, count: int, draws: Draws) -> list[int]:
    features, _, late, middle, (rows, columns) = look
    tokens = range(len(features))
    anchors = draws.take(middle.tolist(), tokens, round(0.1 * count / 5))
    chosen = list(anchors)
    for anchor in anchors:
        row, column = divmod(anchor, columns)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= r < rows and 0 <= c < columns and r * columns + c not in chosen:
                chosen.append(r * columns + c)
    left = [i for i in tokens if i not in chosen]
    return chosen + draws.take([late[i] for i in left], left, count - len(chosen))


def scope(look: Look, count: int, draws: Draws) -> list[int]:
    features, by_class, _, _, _ = look
    tokens = range(len(features))
    near = np.array([[cosine(features[i], features[j]) for j in tokens] for i in tokens])
    best = np.zeros(len(features))
    chosen: list[int] = []
    while len(chosen) < count:
        left = [j for j in tokens if j not in chosen]
        gains = [sum(max(0.0, near[i, j] - best[i]) for i in tokens) * by_class[j] for j in left]
        # As logarithms: what rounding changes of a gain is a share of it.
        chosen.append(draws.best(np.log(np.maximum(gains, 1e-300)).tolist(), left))
        best = np.maximum(best, near[:, chosen[-1]])
    return chosen


def _quotas(weights: Sequence[float], sizes: Sequence[int], count: int) -> list[int]:
    whole = sum(weights)
    quotas = [
        min(size, int(weight / whole * count)) for weight, size in zip(weights, sizes, strict=True)
    ]
    while sum(quotas) < count:
        open_parts = [p for p, size in enumerate(sizes) if quotas[p] < size]
        heaviest = max(open_parts, key=lambda p: (weights[p], -p))
        quotas[heaviest] += 1
    return quotas


def holov(look: Look, count: int, draws: Draws, variance: bool = False) -> list[int]:
    features, by_class, _, _, _ = look
    parts = np.array_split(np.arange(len(features)), min(16, len(features)))
    scores = by_class.copy()
    spread = np.zeros(len(features))
    for part in parts:
        for i in part:
            near = [0.0 if i == j else cosine(features[i], features[j]) for j in part]
            spread[i] = float(np.var(near))
    if variance:
        scores = scores + 0.09 * scores.mean() / spread.mean() * spread
        weights = [float(scores[part].mean()) for part in parts]
    else:  # with the published scale, of each part
        weights = []
        for p in parts:
            scale = by_class[p].mean() / spread[p].mean() if spread[p].any() else 0.0
            varied = 0.09 * (scale * spread[p] if scale else by_class[p].mean())
            weights.append(float(np.mean(by_class[p] + varied)))
    shares = np.array(weights) / sum(weights) * count
    draws.gap = min(draws.gap, float(np.abs(shares - np.round(shares)).min()))
    chosen: list[int] = []
    for part, quota in zip(parts, _quotas(weights, [len(p) for p in parts], count), strict=True):
        chosen += draws.take(scores[part].tolist(), part.tolist(), quota)
    return chosen


LOOKING: dict[str, Callable[[Look, int, Draws], list[int]]] = {
    "visionzip": lambda look, count, draws: visionzip(look, count, draws)[0],
    "vispruner": vispruner,
    "hiprune": hiprune,
    "scope": scope,
    "holov": holov,
    "holov:variance=True": lambda look, count, draws: holov(look, count, draws, variance=True),
}

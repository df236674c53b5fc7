"""Pictures divided into areas of tokens, as nearly squares of one size as their number allows."""

from __future__ import annotations

import math

import numpy as np

from avl_plugins.policies.view import Indices


def areas(places: Indices, count: int) -> Indices:
    """[n]: which of `count` areas each token at `places` [3, n] lies in, -1: in none.

    Each raster (a frame, an overview, the picture) has areas of its own, by its share of the
    tokens. Only where there are more rasters than areas, some have none.
    """
    tokens, found, begin = places.shape[1], np.full(places.shape[1], -1), 0
    rasters, sizes = np.unique(places[0], return_counts=True)
    ends = (2 * count * np.cumsum(sizes) + tokens) // (2 * tokens)
    for raster, end in zip(rasters.tolist(), ends.tolist(), strict=True):
        where = np.flatnonzero(places[0] == raster)
        if end > begin:
            found[where] = begin + _divided(places[1:, where], end - begin)
        begin = end
    return found


def centres(places: Indices, area: Indices) -> Indices:
    """[areas]: the token of each area that is nearest to its middle, of several the first one."""
    tokens = np.flatnonzero(area >= 0)
    found, (rows, columns) = area[tokens], places[1:, tokens]
    size = np.bincount(found)[found]
    # Distances times the area's size are whole numbers, of which equal ones are equal.
    away = np.zeros(len(tokens), np.int64)
    for axis in (rows, columns):
        sums = np.zeros(found.max() + 1, np.int64)
        np.add.at(sums, found, axis)
        away += (size * axis - sums[found]) ** 2
    order = np.lexsort((tokens, away, found))
    _, first = np.unique(found[order], return_index=True)
    middle: Indices = tokens[order[first]]
    return middle


def _divided(places: Indices, count: int) -> Indices:
    """[n]: which of `count` areas of a raster each of its tokens at `places` [2, n] lies in."""
    rows, columns = places - places.min(1, keepdims=True)
    height, width = int(rows.max()) + 1, int(columns.max()) + 1
    lines = round(math.sqrt(count * height / width))
    lines = max(1, -(-count // width), min(lines, height, count))
    line = rows * lines // height
    starts = count * np.arange(lines + 1) // lines
    found: Indices = starts[line] + columns * np.diff(starts)[line] // width
    # A raster whose first token was left out may have an area of nothing else: it takes another.
    sizes = np.bincount(found, minlength=count)
    for empty in np.flatnonzero(sizes == 0).tolist():
        largest = int(sizes.argmax())
        found[np.flatnonzero(found == largest)[0]] = empty
        sizes[largest] -= 1
        sizes[empty] = 1
    return found

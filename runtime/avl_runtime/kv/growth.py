"""How much room rows get as they come, and arrays of another size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import DTypeLike, NDArray

from avl_plugins.schema import Plane
from avl_runtime.machine.pages import ROWS


def room(rows: int, steps: int) -> int:
    """Rows to allocate beyond `rows` when at most `steps` more are to come.

    An eighth has a growing cache copy eight rows a token, however many it has. Where all that may
    come is a quarter at most, it is taken at once, which spares the copy.
    """
    if steps <= rows // 4:
        return max(1, steps)
    return max(1, min(steps, max(16, rows // 8)))


def dense_bytes(
    rows: int,
    steps: int,
    limit: int,
    kv_heads: int,
    planes: Sequence[Plane],
    parked: Sequence[Plane] | None = None,
) -> int:
    """Bytes one dense layer would hold after `rows` of prompt and `steps` of at most `limit`.

    Follows the growth of `append`, so that a dense run's own bytes equal it.
    """
    capacity = rows + room(rows, limit)
    for step in range(steps):
        if rows + step == capacity:
            capacity += room(capacity, limit - step)
    # The parked arrays of a dense cache are the one masked row that graphs ask for.
    each, apart = (
        sum(plane.width * plane.dtype.itemsize for plane in kinds)
        for kinds in (planes, planes if parked is None else parked)
    )
    return (capacity * each + apart) * kv_heads


def resized(array: NDArray[Any], axis: int, length: int, capacity: int) -> NDArray[Any]:
    """The first `length` rows of `array` along `axis`, zeros up to `capacity`."""
    before = (slice(None),) * axis
    new = ROWS.empty((*array.shape[:axis], capacity, *array.shape[axis + 1 :]), array.dtype)
    new[(*before, slice(length))] = array[(*before, slice(length))]
    new[(*before, slice(length, None))] = 0
    return new


def copied(array: NDArray[Any]) -> NDArray[Any]:
    """The same rows in an array of their own."""
    new = ROWS.empty(array.shape, array.dtype)
    new[...] = array
    return new


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Book-keeping of rows, which lies where they do."""
    new = ROWS.empty(shape, dtype)
    new[...] = 0
    return new

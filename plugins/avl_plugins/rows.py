"""How rows of a cache are kept: as numbers of the type that a graph computes in, or as codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_CODE = 127  # codes are symmetric, -127 to 127


@dataclass(frozen=True, slots=True)
class Plane:
    """What a row has of one kind: `width` elements of a type."""

    width: int
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class RowType:
    """A way to keep rows.

    Attributes:
        name: as users and manifests say it.
        coded: whether keys and values are codes of 8 bits, each row with one scale for its key and
            one for its value. Keys are rotated before (`reference.rotation`).
    """

    name: str
    coded: bool

    def planes(self, head_dim: int, dtype: np.dtype[Any]) -> tuple[Plane, ...]:
        """What a row of a head has: key and value, and of codes the scales of the two.

        Args:
            dtype: that the graph computes in.
        """
        if not self.coded:
            return (Plane(head_dim, dtype),) * 2
        codes, scale = Plane(head_dim, np.dtype(np.int8)), Plane(1, np.dtype(np.float32))
        return codes, codes, scale, scale


COMPUTED = RowType("computed", coded=False)  # in the type that the graph computes in
INT8 = RowType("int8", coded=True)
ROW_TYPES: Mapping[str, RowType] = {kept.name: kept for kept in (COMPUTED, INT8)}

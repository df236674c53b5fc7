"""How alike the tokens of a picture are: cosines of their features.

In float64, since tokens of a plain background are so alike that the last digits of float32 decide
among them, and those differ from processor to processor. Among more than FINE tokens they are
float32 all the same: there float64 would take a tenth of the time in which a decoder reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from avl_plugins.cpu.choosing import Choosing, Panels, choosing
from avl_plugins.errors import PolicyError
from avl_plugins.policies.view import Scores

Doubles = npt.NDArray[np.float64]

FINE: Final = 1 << 10  # tokens of one picture or video that are compared in float64
MOST_TOKENS: Final = 1 << 14  # of one picture or video: their cosines take a gigabyte


def unit(rows: Scores) -> Doubles:
    """Rows [n, C] brought to length 1, float64; those of zeros stay."""
    wide = rows.astype(np.float64)
    lengths = np.sqrt(np.einsum("nc,nc->n", wide, wide))[:, None]
    wide /= np.where(lengths > 0, lengths, 1)
    return wide


class Directions(Protocol):
    """Where n rows [n, C] point: what their cosines are found from."""

    def among(self) -> Scores:
        """[n, n]: cosines of all with each other."""

    def among_with_nearest(self) -> tuple[Scores, Scores]:
        """That, and [n]: of each row the greatest cosine to another; -inf of one alone."""

    def to(self, others: Scores) -> Scores:
        """[n, m]: cosines with rows [m, C]."""


@dataclass(frozen=True, slots=True)
class _Units:
    """NumPy's way, of rows of length 1."""

    rows: Scores

    def among(self) -> Scores:
        return self.rows @ self.rows.T

    def among_with_nearest(self) -> tuple[Scores, Scores]:
        near = self.among()
        others = near.copy()
        np.fill_diagonal(others, -np.inf)
        return near, others.max(1)

    def to(self, others: Scores) -> Scores:
        return self.rows @ unit(others).astype(self.rows.dtype, copy=False).T


def directions(rows: Scores, tokens: int | None = None) -> Directions:
    """Of rows [n, C]; cosines are float64, of more than FINE rows float32.

    Args:
        tokens: that count for rows, where others will be compared with them too.
    """
    dtype = dtype_of(len(rows) if tokens is None else tokens)
    if kernels := choosing():
        return kernels.panels(rows, dtype)
    return _Units(unit(rows).astype(dtype, copy=False))


def cosines(name: str, rows: Scores) -> Scores:
    """[n, n] of rows [n, C] with each other: float64, of more than FINE rows float32.

    Raises:
        PolicyError: there are more than MOST_TOKENS; `name` is the policy's.
    """
    check_tokens(name, len(rows))
    return directions(rows).among()


def closeness(of: Directions, temperature: float, out: Scores) -> None:
    """Writes e ** ((cosine - 1) / temperature) of n rows with each other to `out` [n, n]."""
    if isinstance(of, Panels) and of.rows.dtype == np.float32:
        of.among(temperature, out)
        return
    among = of.among()
    among -= 1  # the largest they can be, of all alike: so the exponentials stay symmetric
    among /= temperature
    np.exp(among, out=out)


def dtype_of(tokens: int) -> type[np.floating]:
    """Of likenesses of so many tokens."""
    return np.float64 if tokens <= FINE else np.float32


def check_tokens(name: str, tokens: int) -> None:
    """
    Raises:
        PolicyError: there are more than MOST_TOKENS; `name` is the policy's.
    """
    if tokens > MOST_TOKENS:
        raise PolicyError(
            f"{name}: expected at most {MOST_TOKENS} tokens of one picture or video, each of "
            f"which is compared with each, found {tokens}; show less of it, or use uniform"
        )


def many(tokens: int) -> Choosing | None:
    """Kernels for so many tokens: of more than FINE, where the library is there."""
    return choosing() if tokens > FINE else None

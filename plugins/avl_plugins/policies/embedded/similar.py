"""How alike the tokens of a picture are: cosines of their features.

In float64: tokens of a plain background are so alike that the last digits of float32 would decide
among them, and those differ from backend to backend.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from avl_plugins.errors import PolicyError
from avl_plugins.policies.view import Scores

Doubles = npt.NDArray[np.float64]

MOST_TOKENS: Final = 1 << 14  # of one picture or video: their cosines take two gigabytes


def unit(rows: Scores) -> Doubles:
    """Rows [n, C] brought to length 1, float64; those of zeros stay."""
    wide = rows.astype(np.float64)
    lengths = np.sqrt(np.einsum("nc,nc->n", wide, wide))[:, None]
    wide /= np.where(lengths > 0, lengths, 1)
    return wide


def cosines(name: str, rows: Scores) -> Doubles:
    """[n, n] float64 of rows [n, C] with each other.

    Raises:
        PolicyError: there are more than MOST_TOKENS; `name` is the policy's.
    """
    if len(rows) > MOST_TOKENS:
        raise PolicyError(
            f"{name}: expected at most {MOST_TOKENS} tokens of one picture or video, each of "
            f"which is compared with each, found {len(rows)}; show less of it, or use uniform"
        )
    whole = unit(rows)
    found: Doubles = whole @ whole.T
    return found

"""How alike the tokens of a picture are: cosines of their features."""

from __future__ import annotations

from typing import Final

import numpy as np

from avl_plugins.errors import PolicyError
from avl_plugins.policies.view import Scores

MOST_TOKENS: Final = 1 << 14  # of one picture or video: their cosines take a gigabyte


def unit(rows: Scores) -> Scores:
    """Rows [n, C] brought to length 1; those of zeros stay."""
    lengths = np.sqrt(np.einsum("nc,nc->n", rows, rows))[:, None]
    found: Scores = rows / np.where(lengths > 0, lengths, 1)
    return found


def cosines(name: str, rows: Scores) -> Scores:
    """[n, n] of rows [n, C] with each other.

    Raises:
        PolicyError: there are more than MOST_TOKENS; `name` is the policy's.
    """
    if len(rows) > MOST_TOKENS:
        raise PolicyError(
            f"{name}: expected at most {MOST_TOKENS} tokens of one picture or video, each of "
            f"which is compared with each, found {len(rows)}; show less of it, or use uniform"
        )
    whole = unit(rows)
    found: Scores = whole @ whole.T
    return found

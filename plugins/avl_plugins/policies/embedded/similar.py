"""How alike the tokens of a picture are: cosines of their features.

In float64, since tokens of a plain background are so alike that the last digits of float32 decide
among them, and those differ from processor to processor. Among more than FINE tokens they are
float32 all the same: there float64 would take a tenth of the time in which a decoder reads them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

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


def cosines(name: str, rows: Scores) -> Scores:
    """[n, n] of rows [n, C] with each other: float64, of more than FINE rows float32.

    Raises:
        PolicyError: there are more than MOST_TOKENS; `name` is the policy's.
    """
    if len(rows) > MOST_TOKENS:
        raise PolicyError(
            f"{name}: expected at most {MOST_TOKENS} tokens of one picture or video, each of "
            f"which is compared with each, found {len(rows)}; show less of it, or use uniform"
        )
    whole: Scores = unit(rows)
    if len(rows) > FINE:
        whole = whole.astype(np.float32)
    return whole @ whole.T

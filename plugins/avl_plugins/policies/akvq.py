"""Bits by salience, after AKVQ-VL (arXiv 2501.15021): image rows are parked in few bits but read.

The paper's are: no token is dropped, tokens that take much of the attention (pivots) keep many bits
and other vision tokens have 2, each row has a scale of its own, and keys and values are turned by
Hadamard's matrix, keys after RoPE. How it finds pivots it does not say in full. Ours are the rest:
pivots are the image tokens with most of the attention of a prompt's last row, of each layer for
itself; text keeps the bits of active rows, where the paper has 16, 4 and 2 by layer and age; the
bits of both places are those of the cache (`schema.RowType`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl_plugins.policies.action import Action
from avl_plugins.policies.base import Policy
from avl_plugins.policies.checks import check_fraction
from avl_plugins.policies.split import Divide, ReadParked


@dataclass(frozen=True, slots=True)
class AKVQ(Policy):
    """Park all image tokens but `pivots` of them, and read all of them in every step.

    In a cache whose parked rows have no fewer bits it is dense attention.
    """

    pivots: float = 0.05

    name: ClassVar[str] = "akvq"

    def __post_init__(self) -> None:
        check_fraction(self.name, "pivots", self.pivots)

    def actions(self) -> tuple[Action, ...]:
        return Divide(1.0, self.pivots), ReadParked()

"""Tokens that are drafted by reading core rows alone, for a pass over all rows to check."""

from __future__ import annotations

from dataclasses import dataclass

MOST_ROWS = 16  # the newest token and drafts, in a pass that checks them


@dataclass(frozen=True, slots=True)
class Drafting:
    """How a request may draft, under a policy that drops nothing and reads all rows to decide.

    Attributes:
        most: tokens between two passes that check them.
        adapts: whether there are fewer where fewer are accepted than pays.
    """

    most: int
    adapts: bool

"""Tokens drafted by reading core rows alone, and how many of them are worth a pass over all."""

from __future__ import annotations

from avl_plugins.policies import Drafting

# What a step costs whatever it reads, in bytes that are read in as long: Python and the engine.
AT_LEAST = 8 << 20
# What a pass costs beyond a step that reads all rows, for each number of their keys and values, and
# for each draft as well: arithmetic, in the same unit. Measured with 12,000 rows of 16 heads of 64,
# INT4 and rows of 8 bits: a pass 0.05, and 0.3 where it draws a core; a draft 0.13 with AMX, 0.3
# with VNNI alone, and as much for attention alone where rows are float32.
PASS, EACH = 0.2, 0.2
# What is assumed of drafts before any was checked, and the tokens that the assumption counts as.
CHANCE, WEIGHT = 0.85, 4.0
FORGETS = 0.9  # what earlier passes count, each time another is over
REST = 32  # steps without drafts after which some are tried again


class CoreDrafts:
    """Drafts of one reply.

    Attributes:
        drafted: tokens drafted and checked so far.
        accepted: those of them that became part of the reply.
        pending: tokens drafted since the last check; all of them but the last have rows, and so
            has the token before the first.
    """

    source = "core"

    def __init__(self, drafting: Drafting, repeats: bool = False) -> None:
        """Begin a reply; `repeats`: whether a pass of which a draft was wrong is repeated."""
        self.drafted = self.accepted = 0
        self._repeats = repeats
        self.pending: list[int] = []
        self._drafting = drafting
        self._wanted = 0
        self._core = self._parked = self._values = 0
        self._rested = 0
        self._right, self._wrong = WEIGHT * CHANCE, WEIGHT * (1 - CHANCE)

    def begin(self, core: int, parked: int, values: int) -> None:
        """Know how many bytes of rows every step reads, and how many a draft leaves out.

        Args:
            values: numbers that keys and values of all these rows hold.
        """
        self._core, self._parked, self._values = core, parked, values

    def starts(self, most: int, weights: int) -> bool:
        """Whether to draft next, while nothing is pending; at most so many tokens.

        Args:
            weights: bytes that a step reads beside rows.
        """
        wanted = min(most, self._drafting.most)
        if not self._parked:
            wanted = 0
        elif self._drafting.adapts:
            wanted = self._best(wanted, AT_LEAST + weights + self._core)
        self._wanted = max(0, wanted)
        if self._wanted or not self._drafting.adapts:
            return self._wanted > 0
        self._rested += 1
        if self._rested == REST:
            self._rested = 0
            self._right, self._wrong = WEIGHT * CHANCE, WEIGHT * (1 - CHANCE)
        return False

    def add(self, token: int, ends: bool) -> None:
        """Have another draft.

        Args:
            ends: whether the reply would end with it.
        """
        self.pending.append(token)
        if ends:
            self._wanted = len(self.pending)

    @property
    def complete(self) -> bool:
        """Whether there are as many drafts as shall be checked at once."""
        return 0 < self._wanted <= len(self.pending)

    def count(self, drafted: int, accepted: int) -> None:
        """Know how a check went, after which nothing is pending."""
        self.drafted += drafted
        self.accepted += accepted
        self._right = FORGETS * self._right + accepted
        self._wrong = FORGETS * self._wrong + (accepted < drafted)
        self.pending = []

    def _best(self, most: int, sparse: int) -> int:
        """The number of drafts by which a token costs least; 0 costs one step a token.

        Args:
            sparse: bytes that a step which drafts reads.
        """
        chance = self._right / (self._right + self._wrong)
        tokens = reached = 1.0
        whole = sparse + self._parked
        best, found = float(whole), 0
        for drafts in range(1, most + 1):
            reached *= chance
            tokens += reached
            pass_ = whole + (PASS + drafts * EACH) * self._values
            pass_ += pass_ * (1 - reached) * self._repeats
            cost = (pass_ + drafts * sparse) / tokens
            if cost < best:
                best, found = cost, drafts
        return found

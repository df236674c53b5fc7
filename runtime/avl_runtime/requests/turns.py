"""Whose prompt is read next, of several that wait or are read half way."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

OLDEST = 4  # of so many chunks one is the oldest prompt's

T = TypeVar("T", bound=Hashable)


class Turns(Generic[T]):
    """Gives out chunks of prompts.

    Shorter prompts go first, by powers of two of a chunk: how long a first token takes depends on
    its own prompt, and not on a long one that came before. Prompts of one such size are read one
    after the other, so that rows of the first are there for the next that begins alike, and few
    prompts are read half way at one time. Of any `OLDEST` chunks one belongs to the prompt that
    came first, whatever its length; each prompt comes first some day, so that none waits for ever.
    """

    def __init__(self, chunk: int) -> None:
        """
        Args:
            chunk: tokens that are read at one time.
        """
        self._chunk = chunk
        self._waiting: list[T] = []  # in the order of coming
        self._sizes: dict[T, int] = {}
        self._begun: set[T] = set()
        self._others = 0  # chunks that were others' since the oldest's last one

    @property
    def waiting(self) -> tuple[T, ...]:
        """Those whose prompts are not read, in the order of coming; another thread may ask."""
        return tuple(self._waiting)

    @property
    def begun(self) -> int:
        """How many prompts are read half way."""
        return len(self._begun)

    def size(self, tokens: int) -> int:
        """0 for a prompt of one chunk, 1 for one of two, 2 for three and four, and so on."""
        return ((tokens - 1) // self._chunk).bit_length()

    def add(self, one: T, tokens: int) -> None:
        """Have a prompt of so many tokens wait."""
        self._waiting.append(one)
        self._sizes[one] = self.size(tokens)

    def remove(self, one: T) -> None:
        """Forget one whose prompt was read, or is not wanted."""
        self._waiting.remove(one)
        del self._sizes[one]
        self._begun.discard(one)

    def before(self, tokens: int) -> list[T]:
        """Those that a prompt of so many tokens does not go before."""
        return [one for one in self._waiting if self._sizes[one] <= self.size(tokens)]

    def next(self, room: int) -> T | None:
        """Whose chunk is read now; None where nobody's can be.

        Args:
            room: how many prompts may be begun beside those that are read half way.
        """
        if not self._waiting:
            return None
        oldest, may = self._waiting[0], self._waiting
        if self._others >= OLDEST - 1 and (room > 0 or oldest in self._begun):
            may = [oldest]
        elif room <= 0 or self._others >= OLDEST - 1:  # nor is the oldest's room given away
            may = [one for one in self._waiting if one in self._begun]
        if not may:
            return None
        chosen = min(may, key=self._sizes.__getitem__)
        self._others = 0 if chosen is oldest else self._others + 1
        self._begun.add(chosen)
        return chosen

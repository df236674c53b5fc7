"""Tokens that a reply may go on with, found in what its conversation holds already.

Prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding): where the newest tokens were
there before, what followed them then is drafted. Several drafts are checked in one run, which reads
weights and rows once; what the model would not have said is taken back.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_DRAFTS = 15  # checked together with the newest token, in a run of at most 16 rows
LONGEST, SHORTEST = 3, 2  # tokens that must be the same for others to be drafted

NO_TEXT = -1  # in the place of an image token, which nothing is like and no draft goes over


class PromptLookup:
    """Drafts of one reply, from its prompt, the conversation before it, and itself.

    Attributes:
        most: tokens of a draft at most.
        drafted: tokens drafted so far.
        accepted: those of them that became part of the reply.
    """

    source = "prompt lookup"

    def __init__(self, most: int) -> None:
        self.drafted = self.accepted = 0
        self.most = most
        self._reach = most
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # behind the newest of equal tokens in a row

    def add(self, tokens: Sequence[int]) -> None:
        """Know of more tokens of the conversation; `NO_TEXT` stands for those of images."""
        for token in tokens:
            place = len(self._tokens)
            for size in range(SHORTEST, min(LONGEST, place) + 1):
                same = tuple(self._tokens[-size:])
                if NO_TEXT not in same:
                    self._next[same] = place
            self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """At most so many tokens: what followed the longest of the newest tokens the last time.

        What runs into the newest token goes on with itself, as a pattern that is repeated.
        """
        count = min(most, self._reach)
        if count < 1:
            return []
        for size in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            place = self._next.get(tuple(self._tokens[-size:]))
            if place is not None:
                return self._from(place, count)
        return []

    def count(self, drafted: int, accepted: int) -> None:
        """Know how a draft went; the next is no longer than what may be accepted of it."""
        self.drafted += drafted
        self.accepted += accepted
        if accepted == drafted:
            self._reach = min(self.most, 2 * self._reach)
        else:
            self._reach = min(self.most, accepted + 1)

    def _from(self, place: int, count: int) -> list[int]:
        found: list[int] = []
        known = self._tokens
        for at in range(place, place + count):
            token = known[at] if at < len(known) else found[at - len(known)]
            if token == NO_TEXT:
                break
            found.append(token)
        return found

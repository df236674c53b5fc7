"""Tokens that a reply may go on with, found in what its conversation holds already.

Prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding): where the newest tokens were
there before, what followed them then is drafted. Several drafts are checked in one run, which reads
weights and rows once; what the model would not have said is taken back.

What would have been drafted is compared with what is said in any case, so that how often it is
right is known before anything is spent on it.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_DRAFTS = 15  # checked together with the newest token, in a run of at most 16 rows
LONGEST, SHORTEST = 3, 2  # tokens that must be the same for others to be drafted

NO_TEXT = -1  # in the place of an image token, which nothing is like and no draft goes over

# What a run over drafts costs beyond a step, in steps, and each draft of it: measured on avl-tiny,
# whose steps are short. Larger models pay less.
RUN, EACH = 0.2, 0.28
# What a run takes that is repeated without what was wrong, as states are for that have read it.
AGAIN = 1 + RUN
# How many are drafted: a run of another number of rows binds buffers first, which takes avl-tiny
# three steps and more, and those of four numbers are kept.
LENGTHS = (1, 3, 7, MOST_DRAFTS)
# How many tokens were the same, at least, and what is assumed of such a draft before any was said.
CLASSES = ((2, 0.1), (3, 0.25), (5, 0.5), (8, 0.75))
WEIGHT = 2.0  # tokens that the assumption counts as


class PromptLookup:
    """Drafts of one reply, from its prompt, the conversation before it, and itself.

    Attributes:
        most: tokens of a draft at most.
        repeats: whether a run over drafts of which one is wrong is repeated.
        drafted: tokens drafted so far.
        accepted: those of them that became part of the reply.
    """

    source = "prompt lookup"

    def __init__(self, most: int, repeats: bool = False) -> None:
        self.drafted = self.accepted = 0
        self.most, self.repeats = most, repeats
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # behind the newest of equal tokens in a row
        self._place: int | None = None  # of what followed the newest tokens the last time
        self._same = 0  # tokens before that place which are those that came last, of the reply
        self._said = 0  # tokens of the reply
        self._right = [WEIGHT * share for _, share in CLASSES]
        self._tried = [WEIGHT] * len(CLASSES)

    def add(self, tokens: Sequence[int]) -> None:
        """Know of more tokens of the conversation; `NO_TEXT` stands for those of images."""
        for token in tokens:
            self._note(token)
        self._find()

    @property
    def ready(self) -> bool:
        """Whether enough of the newest tokens were there before for others to be drafted."""
        return self._place is not None and self._same >= SHORTEST

    def say(self, token: int) -> None:
        """Know of the reply's next token, and whether it would have been drafted."""
        if self._place is not None and self._same >= SHORTEST:
            kind, right = _class_of(self._same), self._tokens[self._place] == token
            self._tried[kind] += 1
            self._right[kind] += right
        self._said += 1
        self._note(token)
        self._find()

    def follow(self, most: int) -> list[int]:
        """At most so many tokens: what followed the longest of the newest tokens the last time.

        What runs into the newest token goes on with itself, as a pattern that is repeated.
        """
        found: list[int] = []
        known = self._tokens
        if self._place is None:
            return found
        for at in range(self._place, self._place + most):
            token = known[at] if at < len(known) else found[at - len(known)]
            if token == NO_TEXT:
                break
            found.append(token)
        return found

    def draft(self, most: int) -> list[int]:
        """At most so many tokens of `follow`: as many as are worth a run, by what was right."""
        best, length = 0.0, 0
        gained, chance = -RUN, 1.0
        for number in range(min(most, self.most) if self.ready else 0):
            kind = _class_of(self._same + number)
            chance *= self._right[kind] / self._tried[kind]
            gained += chance - EACH
            worth = gained - AGAIN * (1 - chance) * self.repeats
            if worth > best and number + 1 in LENGTHS:
                best, length = worth, number + 1
        return self.follow(length)

    def count(self, drafted: int, accepted: int) -> None:
        """Know how a draft went."""
        self.drafted += drafted
        self.accepted += accepted

    def _note(self, token: int) -> None:
        place = len(self._tokens)
        for size in range(SHORTEST, min(LONGEST, place) + 1):
            same = tuple(self._tokens[-size:])
            if NO_TEXT not in same:
                self._next[same] = place
        self._tokens.append(token)

    def _find(self) -> None:
        known, self._place, self._same = self._tokens, None, 0
        for size in range(min(LONGEST, len(known)), SHORTEST - 1, -1):
            place = self._next.get(tuple(known[-size:]))
            if place is not None:
                same, most = size, min(CLASSES[-1][0], place)
                while same < most and known[place - same - 1] == known[-same - 1] != NO_TEXT:
                    same += 1
                # A prompt is like one before it whatever its reply is.
                self._place, self._same = place, min(same, self._said)
                return


def _class_of(same: int) -> int:
    return sum(same >= least for least, _ in CLASSES[1:])

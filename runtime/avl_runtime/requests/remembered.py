"""What of a conversation lies in the cache."""

from __future__ import annotations

from dataclasses import dataclass, field

from avl_runtime.generate.sequence import RollbackError, Sequence


@dataclass(slots=True)
class Remembered:
    """Rows of what was said, and the tokens that have none yet.

    Attributes:
        sequence: None if what was said has to be read.
        pending: the last tokens said, to be read in front of the next turn.
        turns: for each turn that was added to the sequence, its tokens before it, and `pending`.
    """

    sequence: Sequence | None = None
    pending: list[int] = field(default_factory=list)
    turns: list[tuple[int, list[int]]] = field(default_factory=list)

    def forget(self) -> None:
        """Have what was said read anew."""
        self.sequence, self.pending, self.turns = None, [], []

    def take_back(self) -> None:
        """Be as before the last turn: without its rows, or, if that cannot be, without any."""
        if self.sequence is None or not self.turns:
            self.forget()
            return
        length, pending = self.turns.pop()
        try:
            self.sequence.roll_back(length)
        except RollbackError:
            self.forget()
        else:
            self.pending = pending

    def fork(self) -> Remembered:
        """A second one that shares the rows until one of the two goes on."""
        sequence = None if self.sequence is None else self.sequence.fork()
        return Remembered(sequence, list(self.pending), list(self.turns))

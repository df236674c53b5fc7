"""What typing a line is, whatever edits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

Complete = Callable[[str], Sequence[str]]


class ClearedError(Exception):
    """Ctrl-C dropped what had been typed."""


class Lines(Protocol):
    """Where messages are typed.

    Attributes:
        sees: whether Ctrl-C behind something typed is told from one at an empty prompt.
    """

    sees: bool

    def read(self, prompt: str, keep: bool = True) -> str:
        """One line, or several that were pasted, without the last line's end.

        Args:
            keep: whether it belongs to the history.

        Raises:
            EOFError: Ctrl-D was pressed.
            ClearedError: Ctrl-C was pressed behind something typed.
            KeyboardInterrupt: Ctrl-C was pressed, as far as is seen at an empty prompt.
            UnicodeDecodeError: what was typed is no text.
        """
        ...

"""Calls of functions in a reply's text, told while it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from avl_runtime.prompts.calls import CallForm


@dataclass(frozen=True, slots=True)
class Piece:
    """What became certain of a reply.

    Attributes:
        text: of the answer itself, or of the arguments of a call.
        call: which call, None for the answer itself.
        name: of the function, where a call begins.
    """

    text: str
    call: int | None = None
    name: str | None = None


class CallReader:
    """Tells calls from other text.

    Attributes:
        calls: how many have begun.
    """

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._held = ""
        self._read: Callable[[bool], list[Piece] | None] = self._text
        self.calls = 0

    def push(self, text: str, *, last: bool = False) -> list[Piece]:
        """Take more text; what became certain with it.

        Args:
            last: whether no more comes. A call whose name was cut is left out.
        """
        self._held += text
        pieces: list[Piece] = []
        while (found := self._read(last)) is not None:
            pieces += found
        return [piece for piece in pieces if piece.text or piece.name is not None]

    def _text(self, last: bool) -> list[Piece] | None:
        before, begins, behind = self._held.partition(self._form.begin)
        if begins:
            self._held, self._read = behind, self._name
            return [Piece(before.rstrip())]
        return self._certain(self._form.begin, last, None)

    def _name(self, last: bool) -> list[Piece] | None:
        name, ends, behind = self._held.partition(self._form.middle)
        if not ends:
            return None
        self._held, self._read = behind, self._arguments
        self.calls += 1
        return [Piece("", self.calls - 1, name)]

    def _arguments(self, last: bool) -> list[Piece] | None:
        ending = self._form.end or self._form.begin
        arguments, ends, behind = self._held.partition(ending)
        if ends:
            self._held = behind if self._form.end else ending + behind
            self._read = self._behind
            return [Piece(arguments, self.calls - 1)]
        return self._certain(ending, last, self.calls - 1)

    def _behind(self, last: bool) -> list[Piece] | None:
        """Behind a call: white space, and then another call or text."""
        begin = self._form.begin
        self._held = self._held.lstrip()
        if not last and begin.startswith(self._held) and self._held != begin:
            return None
        if not self._held:
            return None
        self._read = self._text
        return []

    def _certain(self, ending: str, last: bool, call: int | None) -> list[Piece] | None:
        """All of the held text but its end, which may be the beginning of `ending`."""
        held = self._held
        cut = len(held)
        if not last:
            most = min(len(ending) - 1, cut)
            sizes = range(most, 0, -1)
            cut -= next((size for size in sizes if ending.startswith(held[-size:])), 0)
            if call is None:  # white space in front of a call is no part of the answer
                cut = len(held[:cut].rstrip())
        if not cut:
            return None
        self._held = held[cut:]
        return [Piece(held[:cut], call)]

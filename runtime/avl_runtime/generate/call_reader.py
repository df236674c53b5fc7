"""Calls of functions in a reply's text, told while it comes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from avl_runtime.prompts.calls import KEY, VALUE, CallForm

NAMED: Final = re.compile(r"([\w-]+)[^\w-]")
ARGUMENT: Final = re.compile(rf"<{KEY}>(.*?)</{KEY}>\s*<{VALUE}>", re.DOTALL)
CLOSED: Final = f"</{VALUE}>"


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
    """Tells calls from other text; arguments always as JSON.

    Attributes:
        calls: how many have begun.

    Args:
        texts: of a form that writes arguments one by one, those of each function that are texts.
    """

    def __init__(self, form: CallForm, texts: Mapping[str, Collection[str]] | None = None) -> None:
        self._form, self._texts = form, texts or {}
        self._called = ""  # the function of the last call
        self._arguments_told = 0
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
        if self._form.line is not None:
            return self._tagged_name()
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

    def _tagged_name(self) -> list[Piece] | None:
        found = NAMED.match(self._held)
        if found is None:
            return None
        self._called, self._arguments_told = found[1], 0
        self._held, self._read = self._held[found.end(1) :], self._tagged
        self.calls += 1
        return [Piece("", self.calls - 1, self._called)]

    def _tagged(self, last: bool) -> list[Piece] | None:
        """Behind a name or an argument: the next argument's name, or the call's end."""
        self._held = self._held.lstrip()
        if self._held.startswith(self._form.end):
            self._held, self._read = self._held.removeprefix(self._form.end), self._behind
            return [Piece("}" if self._arguments_told else "{}", self.calls - 1)]
        found = ARGUMENT.match(self._held)
        if found is None:
            return None
        is_text = found[1] in self._texts.get(self._called, ())
        self._held = self._held[found.end() :]
        self._read = self._tagged_text if is_text else self._tagged_json
        begun = ", " if self._arguments_told else "{"
        self._arguments_told += 1
        told = f"{begun}{json.dumps(found[1], ensure_ascii=False)}: "
        return [Piece(f'{told}"' if is_text else told, self.calls - 1)]

    def _tagged_text(self, last: bool) -> list[Piece] | None:
        text, ends, behind = self._held.partition(CLOSED)
        if ends:
            self._held, self._read = behind, self._tagged
            return [Piece(f'{_quoted(text)}"', self.calls - 1)]
        certain = self._certain(CLOSED, last, self.calls - 1)
        return certain and [Piece(_quoted(one.text), one.call) for one in certain]

    def _tagged_json(self, last: bool) -> list[Piece] | None:
        """A value in JSON, whose texts may hold what looks like its end."""
        at = -1
        while (at := self._held.find(CLOSED, at + 1)) >= 0:
            try:
                json.loads(self._held[:at])
            except ValueError:
                continue
            text, self._held = self._held[:at], self._held[at + len(CLOSED) :]
            self._read = self._tagged
            return [Piece(text, self.calls - 1)]
        if not last or not self._held:
            return None
        text, self._held = self._held, ""
        return [Piece(text, self.calls - 1)]

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


def _quoted(text: str) -> str:
    """A part of a text as JSON has it between quotation marks."""
    return json.dumps(text, ensure_ascii=False)[1:-1]

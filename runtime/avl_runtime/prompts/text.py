"""Token ids to text as they are generated: whole characters only, and cut at stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenizers import Tokenizer

from avl_plugins.errors import AvlError, quoted

REPLACEMENT: Final = "\ufffd"  # what decoders put in place of bytes that are no whole character


class TextError(AvlError):
    """A prompt or a stop string that cannot be used."""


def check_text(text: object, what: str) -> None:
    """Refuse anything but text that UTF-8 can hold, as tokenizers need it.

    Args:
        what: it is, for the message.

    Raises:
        TextError: it is no text, or has lone surrogates: bytes of a command line or a file name
            that are no UTF-8.
    """
    if not isinstance(text, str):
        raise TextError(f"expected a {what} of text, found {quoted(text)}; pass a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"expected a {what} in UTF-8, found {quoted(text[error.start])} as character "
            f"{error.start + 1}, which it cannot hold; convert the text to UTF-8"
        ) from None


class StreamDecoder:
    """Turns ids into text one by one; special tokens are left out unless they are asked for.

    The pieces put together equal the tokenizer's decoding of all ids, unless the ids break off
    inside a character that is written as bytes: a decoder with byte fallback then takes back all
    bytes of the run, characters that were whole too, and here they stay. Some tokenizers decode a
    token differently after another than alone (a leading space, a character in several bytes), so
    every piece is the difference of two decodings of a short window of ids. The window moves on at
    whole characters only.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window: list[int] = []
        self._told = 0  # ids at the start of the window whose text has been handed out

    def push(self, token: int) -> str:
        """The text that became certain with `token`: empty inside a character."""
        self._window.append(token)
        piece = self._piece()
        if not piece or piece.endswith(REPLACEMENT):
            return ""
        self._window = self._window[self._told :]
        self._told = len(self._window)
        return piece

    def flush(self) -> str:
        """What is left at the end, where an unfinished character becomes U+FFFD."""
        piece = self._piece()
        self._window, self._told = [], 0
        return piece

    def _piece(self) -> str:
        """The text of the window that has not been handed out."""
        before, now = self._decode(self._window[: self._told]), self._decode(self._window)
        if REPLACEMENT in now and not now.startswith(before):
            # Bytes that make no character have taken back those in front of them.
            return self._decode(self._window[self._told :])
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=self._skip))


class StopMatcher:
    """Cuts text before the first stop string, wherever the pieces are divided.

    The end of a piece that may be the beginning of a stop string is held back until it is decided.

    Raises:
        TextError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            stops = (stops,)
        if not all(stops):
            raise TextError("expected stop strings of at least one character, found an empty one")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that may be shown after `piece`; nothing once a stop string was found."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        cut = len(text) - self._undecided(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """The text held back, at the end of generation."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

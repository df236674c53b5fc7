"""A file of requests, of which memory holds where each begins, and no more."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import threading
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import AvlError, quoted, shown
from avl_runtime.serve.batch.lines import Piece, id_of, loosely, outline

STDIN: Final = Path("-")
BESIDE: Final = 1 << 16  # bytes of a line beside the body that it holds
PREFIX: Final = 8  # pieces of a prompt that requests are ordered by
PART: Final = 1 << 20
TOO_LONG: Final = -1


class QuestionsError(AvlError):
    """A file of requests cannot be used."""


class LineFile:
    """A file whose lines are read by where they are, as long as it is as it was.

    Attributes:
        path: as messages name it.
        file: open.
        state: its size and time; a process elsewhere that reads the same file compares them.
    """

    def __init__(self, path: Path, state: tuple[int, int] | None = None) -> None:
        """
        Args:
            path: `-` reads stdin, which is copied to a temporary file.
            state: as it has to be; None for as it is.

        Raises:
            QuestionsError: it cannot be read.
        """
        self.path = path
        self._turn = threading.Lock()
        try:
            self.file = _opened(path)
        except (OSError, ValueError) as error:
            raise QuestionsError(
                f"{shown(path)}: expected a JSONL file, found: "
                f"{shown(getattr(error, 'strerror', None) or error)}; check the path"
            ) from None
        self.state = _state(self.file) if state is None else state

    def read(self, start: int, length: int) -> bytes:
        """A part of it.

        Raises:
            QuestionsError: it was changed.
        """
        with self._turn:
            same = _state(self.file) == self.state
            self.file.seek(start)
            line = self.file.read(length)
        if not same or len(line) != length:
            raise QuestionsError(
                f"{shown(self.path)}: expected the file as it was at the beginning, found it "
                "changed meanwhile; put it back and go on with --resume"
            )
        return line


class Questions:
    """Requests by their place in the file, from 0 on.

    Attributes:
        source: the file.
        path: as messages name it.
        places: of requests, by what `key` makes of their names.
        sha256: of the whole file.
        order: places, so that requests about the same picture, and of these such that begin alike,
            follow one another.
    """

    def __init__(self, path: Path, longest: int) -> None:
        """Read the file once.

        Args:
            path: `-` reads stdin, which is copied to a temporary file.
            longest: bytes of a body.

        Raises:
            QuestionsError: it cannot be read, is empty, or calls two requests by one name.
        """
        self.path = path
        self._longest = longest + BESIDE
        self.source = LineFile(path)
        self._file = self.source.file
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._starts)

    def number(self, place: int) -> int:
        """Which line of the file a request is, from 1 on."""
        return self._numbers[place]

    def line(self, place: int) -> bytes | None:
        """The line of a request; None if it is longer than any that can be asked.

        Raises:
            QuestionsError: the file was changed after it had been read first.
        """
        length = self._lengths[place]
        return None if length == TOO_LONG else self.source.read(self._starts[place], length)

    def spans(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where requests are: [requests, 4], each its place, start, length and line."""
        columns = [np.frombuffer(one, np.int64) for one in (self._starts, self._lengths)]
        columns.append(np.frombuffer(self._numbers, np.int64))
        return np.stack([places, *(one[places] for one in columns)], axis=1)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _read(self) -> None:
        self._starts, self._lengths, self._numbers = array("q"), array("q"), array("q")
        self.places: dict[bytes, int] = {}
        self._digest = hashlib.sha256()
        pictures, prefixes = array("Q"), array("Q")
        for line in self._lines():
            found = loosely(line)
            self._name(id_of(found, self._numbers[-1]))
            picture, prefix = _outlined(outline(found))
            pictures.append(picture)
            prefixes.extend(prefix)
        if not self._starts:
            raise QuestionsError(
                f"{shown(self.path)}: expected a request on each line, found none; add some"
            )
        self.sha256 = self._digest.hexdigest()
        self.order = _ordered(
            np.frombuffer(pictures, np.uint64),
            np.frombuffer(prefixes, np.uint64).reshape(-1, PREFIX),
        )

    def _lines(self) -> Iterator[bytes]:
        """Each line that is not empty, once its place has been noted; b"" for one too long."""
        number, start = 0, self._behind_mark()
        while line := self._file.readline(self._longest + 1):
            number += 1
            self._digest.update(line)
            length, long, part = len(line), len(line) > self._longest, line
            while long and not part.endswith(b"\n") and (part := self._file.readline(PART)):
                self._digest.update(part)
                length += len(part)
            if line.strip():
                self._starts.append(start)
                self._lengths.append(TOO_LONG if long else length)
                self._numbers.append(number)
                yield b"" if long else line
            start += length

    def _behind_mark(self) -> int:
        """Where the first line begins: behind a byte order mark, which Windows puts in front."""
        if self._file.read(len(BOM_UTF8)) == BOM_UTF8:
            self._digest.update(BOM_UTF8)
            return len(BOM_UTF8)
        self._file.seek(0)
        return 0

    def _name(self, name: str) -> None:
        place = len(self._starts) - 1
        other = self.places.setdefault(key(name), place)
        if other != place:
            raise QuestionsError(
                f"{shown(self.path)}: expected each custom_id once, found {quoted(name)} in lines "
                f"{self._numbers[other]} and {self._numbers[place]}; give one another (a line "
                "without any is called line- and its number)"
            )


def key(name: str) -> bytes:
    """A name in 16 bytes."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _opened(path: Path) -> IO[bytes]:
    """The file, or a copy of what can be read only once."""
    if path == STDIN:
        if sys.stdin is None:
            raise ValueError("no stdin")
        return _copied(sys.stdin.buffer)
    file = path.open("rb")
    if path.is_file():
        return file
    with file:
        return _copied(file)


def _copied(source: IO[bytes]) -> IO[bytes]:
    with ExitStack() as stack:
        copy = stack.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(source, copy)
        copy.seek(0)
        stack.pop_all()
    return copy


def _state(file: IO[bytes]) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _outlined(pieces: Iterable[Piece]) -> tuple[int, list[int]]:
    """Digests of a request's first picture (0 if there is none), and of how its prompt begins.

    Of the latter there are `PREFIX`: of the first piece, of the first two and so on.
    """
    picture = 0
    found: list[int] = []
    begun = hashlib.blake2b(digest_size=8)
    for piece in islice(pieces, 1 << 10):
        value = piece.value.encode("utf-8", "surrogatepass")
        if piece.holder is not None and not picture:
            picture = _number(hashlib.blake2b(value, digest_size=8))
        if len(found) < PREFIX:
            begun.update(f"{piece.role} {piece.holder is None} {len(value)} ".encode())
            begun.update(value)
            found.append(_number(begun))
    return picture, found + [0] * (PREFIX - len(found))


def _number(digest: hashlib.blake2b) -> int:
    return int.from_bytes(digest.digest(), "little")


def _ordered(pictures: NDArray[np.uint64], prefixes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Places by picture, then by prefix, each in the order in which it first appears.

    Args:
        pictures: [requests]
        prefixes: [requests, PREFIX]
    """
    columns = [_first(column) for column in (pictures, *prefixes.T)]
    return np.lexsort(columns[::-1])  # stable, and its last key counts the most


def _first(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each value appears first."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    return first[which]

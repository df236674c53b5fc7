"""Read and check what stands before the tensors of a GGUF file, without reading a single weight.

A file is a magic number, a version, two counts, metadata (a name, a type and a value each), a table
of tensors (name, sizes, type, offset), and the aligned data that it points into:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Whatever a file says of sizes is compared
with the bytes that it has before memory is taken.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from avl_export.checkpoint.gguf.types import LAYOUTS, refuse_type
from avl_export.checkpoint.safetensors_header import (
    FETCH_AGAIN,
    CheckpointError,
    TensorRecord,
    check_pointer,
)
from avl_plugins.errors import quoted, shown

MAGIC = b"GGUF"
FIXED = 24  # bytes: the magic number, the version, two counts
VERSIONS = (2, 3)
ALIGNMENT = 32  # bytes; what files have that name none
MOST_ENTRIES = 1 << 16  # values, or tensors; large models have some hundreds
MOST_HEADER = 64 << 20  # bytes; the largest vocabularies take some 20 MB
MOST_DIMENSIONS = 4
STRING, ARRAY = 8, 9
NUMBERS: Mapping[int, str] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


@dataclass(frozen=True, slots=True)
class GgufRecord(TensorRecord):
    """One stored tensor; codes are U8 [rows, bytes of a row].

    Attributes:
        type: what ggml calls it, as Q4_0.
        sizes: of the tensor, as torch orders them: outputs before inputs.
        heads: where rows of each of so many heads lie as llama.cpp turns them, neighbours together;
            transformers has the first halves of all pairs before the others.
    """

    type: str
    sizes: tuple[int, ...]
    heads: int | None = None


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a file says: values by their names (arrays of numbers are NumPy's), and tensors."""

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, GgufRecord]


def read_gguf(path: Path) -> GgufFile:
    """Metadata and tensors of the GGUF file at `path`.

    Raises:
        CheckpointError: it is no such file, is damaged or cut short, or holds tensors of a type
            that is not read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            begin = file.read(64)
            check_pointer(begin, path)
            file.seek(0)
            return _read(_Cursor(file, path, min(size, MOST_HEADER)), begin, size)
    except OSError as error:
        raise CheckpointError(
            f"{path}: expected a readable GGUF file, found {error.strerror or error}; {FETCH_AGAIN}"
        ) from None


@dataclass(slots=True)
class _Cursor:
    """A place in a file's header, which ends at `end`."""

    file: BinaryIO
    path: Path
    end: int
    at: int = 0

    def take(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise self.damaged(f"{count} bytes at byte {self.at} of a header of at most {self.end}")
        data = self.file.read(count)
        if len(data) != count:
            raise self.damaged(f"an end after byte {self.at + len(data)}")
        self.at += count
        return data

    def number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return value

    def text(self) -> str:
        data = self.take(self.number("Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"text that is no UTF-8 before byte {self.at}") from None

    def value(self) -> Any:
        kind = self.number("I")
        return self._array() if kind == ARRAY else self._single(kind)

    def count(self, what: str) -> int:
        found: int = self.number("Q")
        if found > MOST_ENTRIES:
            raise self.damaged(f"{found} {what}")
        return found

    def damaged(self, found: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: expected a whole GGUF file, found {found}; {FETCH_AGAIN}"
        )

    def _array(self) -> Any:
        kind, count = self.number("I"), self.number("Q")
        if kind in NUMBERS:
            numbers = np.dtype(f"<{NUMBERS[kind]}")
            return np.frombuffer(self.take(count * numbers.itemsize), numbers)
        if kind != STRING:
            raise self.damaged(f"an array of type {kind} before byte {self.at}")
        # Each takes 8 bytes at least, so that a count that lies ends the loop early.
        return [self.text() for _ in range(count)]

    def _single(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind not in NUMBERS:
            raise self.damaged(f"a value of type {kind} before byte {self.at}")
        return self.number(NUMBERS[kind])


def _read(cursor: _Cursor, begin: bytes, size: int) -> GgufFile:
    if not MAGIC.startswith(begin[: len(MAGIC)]):
        raise CheckpointError(
            f"{cursor.path}: expected a GGUF file, found one that does not begin with GGUF; "
            f"{FETCH_AGAIN}"
        )
    if size < FIXED:
        raise cursor.damaged(f"one of {size} bytes")
    cursor.take(len(MAGIC))
    version = cursor.number("I")
    if version not in VERSIONS:
        raise CheckpointError(
            f"{cursor.path}: expected GGUF of version {' or '.join(map(str, VERSIONS))}, found "
            f"{version if version < 1 << 16 else 'numbers in big-endian order'}; convert the model "
            "again with a current llama.cpp"
        )
    tensors, entries = cursor.count("tensors"), cursor.count("values")
    values: dict[str, Any] = {}
    for _ in range(entries):
        name = cursor.text()
        if name in values:
            raise cursor.damaged(f"{shown(name, 80)} twice")
        values[name] = cursor.value()
    alignment = values.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged(f"an alignment of {quoted(alignment, 40)}")
    table = [_entry(cursor) for _ in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    found: dict[str, GgufRecord] = {}
    for name, sizes, kind, offset in table:
        if name in found:
            raise cursor.damaged(f"a tensor {shown(name, 80)} twice")
        found[name] = _record(cursor, name, sizes, kind, start + offset, size)
        if offset % alignment:
            raise cursor.damaged(f"{shown(name, 80)} at byte {offset}, which is not aligned")
    return GgufFile(cursor.path, values, found)


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, sizes as torch orders them, type and offset of a tensor."""
    name, count = cursor.text(), cursor.number("I")
    if not 1 <= count <= MOST_DIMENSIONS:
        raise cursor.damaged(f"a tensor {shown(name, 80)} of {count} dimensions")
    sizes = tuple(cursor.number("Q") for _ in range(count))
    return name, sizes[::-1], cursor.number("I"), cursor.number("Q")


def _record(
    cursor: _Cursor, name: str, sizes: tuple[int, ...], kind: int, offset: int, size: int
) -> GgufRecord:
    layout = LAYOUTS.get(kind)
    if layout is None:
        raise refuse_type(cursor.path, name, kind)
    columns, rows = sizes[-1], math.prod(sizes[:-1])
    if 0 in sizes or columns % layout.values:
        raise cursor.damaged(
            f"{shown(name, 80)} of {list(sizes)} in {layout.name}, which holds rows in blocks of "
            f"{layout.values}"
        )
    row = columns // layout.values * layout.nbytes
    nbytes = rows * row
    if offset + nbytes > size:
        raise cursor.damaged(f"{size} bytes where {shown(name, 80)} ends at byte {offset + nbytes}")
    if layout.dtype is not None:
        return GgufRecord(layout.dtype, sizes, offset, nbytes, layout.name, sizes)
    return GgufRecord("U8", (rows, row), offset, nbytes, layout.name, sizes)

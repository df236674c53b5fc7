"""Read a checkpoint's tensors in pieces, never whole."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from avl_export.checkpoint.safetensors_header import CheckpointError, TensorRecord

Floats = npt.NDArray[np.float32]

PIECE = 1 << 22  # bytes; small enough to stay in a core's cache while it is worked on
_STORED: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "F8_E4M3": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
OF_STORED: Mapping[str, Literal["fp32", "fp16", "bf16"]] = {
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
}


@dataclass(frozen=True, slots=True)
class Source:
    """One stored tensor: its key and file are for messages and reading."""

    key: str
    path: Path
    record: TensorRecord

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint."""
        return self.record.nbytes

    def read(self, first: int, last: int) -> npt.NDArray[Any]:
        """Rows `first` to `last` - 1 as stored; bfloat16 and float8 as their bits, unsigned.

        For pieces far below 2 GiB, from any thread. Unlike a mapping it leaves no pages behind in
        this process.
        """
        shape = self.record.shape
        stored = _STORED[self.record.dtype]
        row = math.prod(shape[1:]) * stored.itemsize
        nbytes = (last - first) * row
        with self.path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), nbytes, self.record.offset + first * row)
        if len(data) != nbytes:
            raise CheckpointError(
                f"{self.path}: {self.key}: expected {nbytes} bytes, found {len(data)}; "
                "the file has changed since it was opened, export again"
            )
        return np.frombuffer(data, stored).reshape(last - first, *shape[1:])

    def read_whole(self) -> npt.NDArray[Any]:
        """All rows as stored, as `read`; a number by itself as [1]."""
        return self.read(0, self.record.shape[0] if self.record.shape else 1)

    def read_floats(self, first: int, last: int) -> Floats:
        """Rows `first` to `last` - 1 as float32."""
        return to_float32(self.read(first, last), self.record.dtype)


class Change(Protocol):
    """Makes other rows of a tensor's."""

    def rows(self, weights: Floats, first: int, last: int, base: Source) -> Floats:
        """What becomes of the rows `first` to `last` - 1, which are `weights` in `base`."""
        ...


@dataclass(frozen=True, slots=True)
class ComputedSource(Source):
    """A tensor that is computed while it is read, row by row: only as float32.

    `record` tells its shape, and the dtype that its values fit.
    """

    piece_nbytes: ClassVar[int] = PIECE  # of float32, that are best read at a time


@dataclass(frozen=True, slots=True)
class ChangedSource(ComputedSource):
    """A tensor of `base` with every row changed."""

    base: Source
    change: Change

    def read_floats(self, first: int, last: int) -> Floats:
        """Rows `first` to `last` - 1, changed, as float32."""
        weights = self.base.read_floats(first, last)
        return self.change.rows(weights, first, last, self.base)


@dataclass(frozen=True, slots=True)
class SwappedSource(ComputedSource):
    """A stack of matrices of `base` with the last two axes the other way round."""

    base: Source

    @classmethod
    def of(cls, base: Source) -> SwappedSource:
        """The stack that `base` stores so."""
        *lead, rows, columns = base.record.shape
        record = replace(base.record, shape=(*lead, columns, rows))
        return cls(base.key, base.path, record, base)

    def read_floats(self, first: int, last: int) -> Floats:
        """Matrices `first` to `last` - 1 as float32, their rows in one piece."""
        return np.ascontiguousarray(self.base.read_floats(first, last).swapaxes(-1, -2))


def to_float32(values: npt.NDArray[Any], dtype: str) -> Floats:
    """Stored values (bfloat16 as bits) as float32."""
    if dtype == "BF16":  # its bits are the upper half of a float32's
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def round_to(values: Floats, dtype: str) -> Floats:
    """float32 values rounded to the nearest fp32, fp16 or bf16 value."""
    if dtype == "fp16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return values


def stored_bytes(values: Floats, dtype: str) -> bytes:
    """float32 values as the bytes of `dtype` (F32, F16, BF16), rounded to nearest."""
    if dtype == "BF16":
        return (round_to(values, "bf16").view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype(_STORED[dtype]).tobytes()


def pieces(source: Source, dtype: str) -> Iterator[bytes]:
    """The tensor's bytes as `dtype`, piece by piece.

    Raises:
        CheckpointError: a value lies outside the range of fp16.
    """
    if isinstance(source, ComputedSource):
        rows, *rest = source.record.shape
        step = max(1, source.piece_nbytes // (4 * math.prod(rest)))
        for first in range(0, rows, step):
            yield _rounded(source.read_floats(first, min(first + step, rows)), source, dtype)
        return
    whole = source.record
    count = math.prod(whole.shape)
    flat = replace(source, record=replace(whole, shape=(count,)))
    for first in range(0, count, step := PIECE // 4):
        values = flat.read(first, min(first + step, count))
        if dtype == source.record.dtype:
            yield values.tobytes()
        else:
            yield _rounded(to_float32(values, source.record.dtype), source, dtype)


def _rounded(floats: Floats, source: Source, dtype: str) -> bytes:
    if dtype == "F16" and np.abs(floats).max() > np.finfo(np.float16).max:
        raise CheckpointError(
            f"{source.path}: {source.key}: expected values within fp16's range, found "
            f"{np.abs(floats).max():.3g}; export with --dtype bf16 or fp32"
        )
    return stored_bytes(floats, dtype)

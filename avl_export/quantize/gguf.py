"""Weights of GGUF files: blocks of neighbouring inputs, each with its scales beside its codes.

The blocks' layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h; what they stand
for: dequantize_row_q4_0 and its like in ggml-quants.c.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt

from avl_export.checkpoint.gguf.header import GgufRecord
from avl_export.checkpoint.safetensors_header import CheckpointError, TensorRecord
from avl_export.checkpoint.source import (
    OF_STORED,
    PIECE,
    Floats,
    Source,
    round_to,
    to_float32,
)
from avl_export.quantize.blocks import Codes
from avl_export.quantize.codes import Dequantized, StoredCodes, floats_record
from avl_export.quantize.packing import pack_int4

Bytes = npt.NDArray[np.uint8]
APART = "llama.cpp stores them in parts, or in another order"
INTO = "F16"  # what is no codes of a package


class Blocks(ABC):
    """How the blocks of a type lie.

    Attributes:
        values, nbytes: of a block.
        bits, group: of the codes that a package holds them as, and inputs that share a scale; None
            where a weight is more than a code times a scale.
    """

    values: ClassVar[int]
    nbytes: ClassVar[int]
    bits: ClassVar[Literal[4, 8] | None]
    group: ClassVar[int]

    @staticmethod
    @abstractmethod
    def codes(blocks: Bytes) -> Codes:
        """[.., nbytes] -> [.., values]."""

    @staticmethod
    @abstractmethod
    def scales(blocks: Bytes) -> Floats:
        """[.., nbytes] -> [.., values / group]."""

    @classmethod
    def floats(cls, blocks: Bytes) -> Floats:
        """What blocks [.., nbytes] stand for, [.., values]."""
        scales = np.repeat(cls.scales(blocks), cls.group, -1)
        return cls.codes(blocks).astype(np.float32) * scales


def _half(blocks: Bytes, place: int) -> Floats:
    """The fp16 number at `place` of each block, [.., 1]."""
    two = np.ascontiguousarray(blocks[..., place : place + 2])
    return two.view("<f2").astype(np.float32)


class Q40(Blocks):
    """A scale, and 16 bytes of two codes from 0 to 15 less 8: of the inputs k and k + 16."""

    values, nbytes, bits, group = 32, 18, 4, 32

    @staticmethod
    def codes(blocks: Bytes) -> Codes:
        two = blocks[..., 2:]
        both = np.concatenate([two & np.uint8(15), two >> np.uint8(4)], -1)
        return both.view(np.int8) - np.int8(8)

    @staticmethod
    def scales(blocks: Bytes) -> Floats:
        return _half(blocks, 0)


class Q80(Blocks):
    """A scale, and 32 signed bytes."""

    values, nbytes, bits, group = 32, 34, 8, 32

    @staticmethod
    def codes(blocks: Bytes) -> Codes:
        return blocks[..., 2:].view(np.int8)

    @staticmethod
    def scales(blocks: Bytes) -> Floats:
        return _half(blocks, 0)


class Q6K(Blocks):
    """Codes of 6 bits less 32: their low 4 bits, their high 2, 16 signed scales, and a factor."""

    values, nbytes, bits, group = 256, 210, 8, 16

    @staticmethod
    def codes(blocks: Bytes) -> Codes:
        shape = blocks.shape[:-1]
        low = blocks[..., :128].reshape(
            *shape, 2, 2, 32
        )  # halves, of which the low bits come first
        high = blocks[..., 128:192].reshape(*shape, 2, 1, 32)
        low = np.concatenate([low & np.uint8(15), low >> np.uint8(4)], -2)
        shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
        codes = low | (((high >> shifts) & np.uint8(3)) << np.uint8(4))
        return codes.reshape(*shape, 256).view(np.int8) - np.int8(32)

    @staticmethod
    def scales(blocks: Bytes) -> Floats:
        steps = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
        return steps.astype(np.float32) * _half(blocks, 208)


class Q4K(Blocks):
    """Codes from 0 to 15 with 8 scales and 8 lowest values of 6 bits each, and factors of both."""

    values, nbytes, bits, group = 256, 144, None, 32

    @staticmethod
    def codes(blocks: Bytes) -> Codes:
        two = blocks[..., 16:].reshape(*blocks.shape[:-1], 4, 1, 32)
        both = np.concatenate([two & np.uint8(15), two >> np.uint8(4)], -2)
        return both.reshape(*blocks.shape[:-1], 256).view(np.int8)

    @staticmethod
    def scales(blocks: Bytes) -> Floats:
        first, _, last = (blocks[..., n : n + 4] for n in (4, 8, 12))
        high = (last & np.uint8(15)) | (first >> np.uint8(6) << np.uint8(4))
        steps = np.concatenate([first & np.uint8(63), high], -1)
        return steps.astype(np.float32) * _half(blocks, 0)

    @classmethod
    def floats(cls, blocks: Bytes) -> Floats:
        middle, last = (blocks[..., n : n + 4] for n in (8, 12))
        high = (last >> np.uint8(4)) | (middle >> np.uint8(6) << np.uint8(4))
        steps = np.concatenate([middle & np.uint8(63), high], -1)
        lowest = steps.astype(np.float32) * _half(blocks, 2)
        return super().floats(blocks) - np.repeat(lowest, cls.group, -1)


TYPES: Mapping[str, type[Blocks]] = {"Q4_0": Q40, "Q8_0": Q80, "Q6_K": Q6K, "Q4_K": Q4K}


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one tensor in transformers' order.

    Where llama.cpp turned those of queries or keys, it put the two halves of each pair that RoPE
    turns side by side: LlamaModel.permute in its conversion/llama.py.
    """

    source: Source
    record: GgufRecord

    def read(self, first: int, last: int) -> npt.NDArray[Any]:
        """Rows `first` to `last` - 1 as stored, by bytes where they are codes."""
        heads = self.record.heads
        if heads is None:
            return self.source.read(first, last)
        size = self.record.sizes[0] // heads
        begin, end = first // size * size, -(-last // size) * size
        stored = self.source.read(begin, end)
        return stored[_turned(begin, end, size)[first - begin : last - begin]]

    def floats(self, first: int, last: int) -> Floats:
        """Rows `first` to `last` - 1 as what they stand for."""
        stored, record = self.read(first, last), self.record
        layout = TYPES.get(record.type)
        if layout is None:
            return to_float32(stored, record.dtype)
        found = layout.floats(stored.reshape(last - first, -1, layout.nbytes))
        return found.reshape(last - first, *record.sizes[1:])


def _turned(begin: int, end: int, size: int) -> npt.NDArray[np.int64]:
    """Where each of transformers' rows of whole heads of `size` lies among the stored ones."""
    pairs = np.arange(end - begin).reshape(-1, size // 2, 2)
    return pairs.swapaxes(1, 2).reshape(-1)


@dataclass(frozen=True, slots=True)
class GgufCodes(StoredCodes):
    """One linear's weight in blocks that are codes times scales, which stay as they are."""

    record: GgufRecord

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes

    def rows(self, first: int, last: int) -> Codes:
        return self._layout.codes(self._blocks(first, last)).reshape(last - first, -1)

    def pieces(self) -> Iterator[bytes]:
        outputs, inputs = self.shape
        layout, blocks = self._layout, self._blocks(0, outputs)
        step = max(1, PIECE // 4 // (layout.values * outputs))
        for first in range(0, inputs // layout.values, step):
            part = layout.codes(blocks[:, first : first + step])
            codes = np.ascontiguousarray(part.reshape(outputs, -1).T)
            yield (pack_int4(codes) if self.bits == 4 else codes).tobytes()

    def zeros_of_groups(self) -> Codes | None:
        return None

    def scales_of_groups(self) -> Floats:
        outputs, step = self.shape[0], max(1, PIECE // self.record.shape[1])
        parts = [
            self._layout.scales(self._blocks(n, min(n + step, outputs)))
            for n in range(0, outputs, step)
        ]
        return np.ascontiguousarray(np.concatenate(parts).reshape(outputs, -1).T)

    @property
    def _layout(self) -> type[Blocks]:
        return TYPES[self.record.type]

    def _blocks(self, first: int, last: int) -> Bytes:
        stored = _Rows(self.codes, self.record).read(first, last)
        return stored.reshape(last - first, -1, self._layout.nbytes)


@dataclass(frozen=True, slots=True)
class GgufFloats(Dequantized):
    """A weight of one or more tensors as what they stand for.

    Attributes:
        parts: its rows, one part's after another's; or of a kernel over two frames the halves.
    """

    parts: tuple[_Rows, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return sum(part.record.nbytes for part in self.parts)

    def read_floats(self, first: int, last: int) -> Floats:
        """Rows `first` to `last` - 1 as float32.

        Raises:
            CheckpointError: one is not finite.
        """
        if len(self.record.shape) == 5:
            floats = np.stack([part.floats(first, last) for part in self.parts], 2)
        else:
            found, before = [], 0
            for part in self.parts:
                rows = part.record.sizes[0]
                begin, end = max(first - before, 0), min(last - before, rows)
                if begin < end:
                    found.append(part.floats(begin, end))
                before += rows
            floats = np.concatenate(found)
        if not np.isfinite(floats).all():
            raise CheckpointError(
                f"{self.path}: {self.key}: expected finite weights, found others; fetch the file "
                "again"
            )
        return round_to(floats, OF_STORED[self.record.dtype])


def gguf_weight(shape: tuple[int, ...], sources: Mapping[str, Source]) -> Source | StoredCodes:
    """The weight of `shape` that tensors make, in the order of their rows.

    Raises:
        CheckpointError: they have other sizes.
    """
    parts = tuple(_Rows(s, cast(GgufRecord, s.record)) for s in sources.values())
    _check_sizes(shape, parts)
    first = parts[0]
    layout, record = TYPES.get(first.record.type), first.record
    if len(parts) == 1 and layout is not None and layout.bits is not None and len(shape) == 2:
        source = first.source
        return GgufCodes(
            shape=(shape[0], shape[1]),
            bits=layout.bits,
            group=layout.group,
            codes=source,
            scales=source,
            zeros=None,
            order=None,
            record=record,
        )
    if len(parts) == 1 and layout is None and record.heads is None:
        plain = TensorRecord(record.dtype, record.shape, record.offset, record.nbytes)
        return Source(first.source.key, first.source.path, plain)
    return _floats(shape, parts)


def as_floats(weight: Source | StoredCodes) -> Source:
    """`weight` with codes as what they stand for."""
    if not isinstance(weight, GgufCodes):
        return cast(Source, weight)
    return _floats(weight.shape, (_Rows(weight.codes, weight.record),))


def _floats(shape: tuple[int, ...], parts: tuple[_Rows, ...]) -> GgufFloats:
    types = dict.fromkeys(part.record.type for part in parts)
    codes = [name for name in types if name in TYPES]
    dtype = INTO if codes else next(iter(types)) if len(types) == 1 else "F32"
    why = f"codes are {' and '.join(codes)}" if codes else APART
    source = parts[0].source
    return GgufFloats(source.key, source.path, floats_record(dtype, shape), why, parts)


def _check_sizes(shape: tuple[int, ...], parts: tuple[_Rows, ...]) -> None:
    found = [part.record.sizes for part in parts]
    if len(shape) == 5:
        fits = shape[2] == len(parts) and all(s == (*shape[:2], *shape[3:]) for s in found)
    else:
        fits = sum(s[0] for s in found) == shape[0] and all(s[1:] == shape[1:] for s in found)
    heads = [part.record.heads for part in parts]
    fits = fits and not any(h and (s[0] % (2 * h)) for h, s in zip(heads, found, strict=True))
    if not fits:
        source = parts[0].source
        sizes = " and ".join(str(list(one)) for one in found)
        raise CheckpointError(
            f"{source.path}: {source.key}: expected {list(shape)} as the configuration says, found "
            f"{sizes}; it belongs to another model"
        )

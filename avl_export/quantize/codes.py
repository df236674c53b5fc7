"""Weights that a checkpoint holds as codes, and what becomes of them in a package."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from avl_export.checkpoint.safetensors_header import (
    FETCH_AGAIN,
    ITEM_BITS,
    CheckpointError,
    TensorRecord,
)
from avl_export.checkpoint.source import (
    OF_STORED,
    PIECE,
    ComputedSource,
    Floats,
    Source,
    round_to,
)
from avl_export.quantize.blocks import Codes, dequantize

BLOCKS = (128, 64, 32, 16)  # inputs that share a scale in packages


@dataclass(frozen=True, slots=True)
class StoredCodes(ABC):
    """One linear's weight [outputs, inputs] as a quantized checkpoint stores it.

    A weight is (code - zero) * scale. Codes and zeros are signed; neighbouring inputs share a zero
    and a scale, unless `order` says otherwise.

    Attributes:
        bits: of a code.
        group: inputs that share a scale.
        codes, scales: the tensors that hold them; `zeros` None: all zeros are 0.
        order: int32 [inputs], the group of each input; None: neighbours.
    """

    shape: tuple[int, int]
    bits: Literal[4, 8]
    group: int
    codes: Source
    scales: Source
    zeros: Source | None
    order: Source | None

    @property
    def block(self) -> int | None:
        """The block of a package; None for one scale an output.

        Groups larger than backends take are split, losslessly.
        """
        if self.bits == 8 and self.group == self.shape[1]:
            return None
        return next((size for size in BLOCKS if self.group % size == 0), BLOCKS[-1])

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint."""
        sources = (self.codes, self.zeros, self.scales, self.order)
        return sum(source.nbytes for source in sources if source is not None)

    def misfit(self) -> str | None:
        """Why no package holds the codes as they are, None if one does; reads `order`.

        Raises:
            CheckpointError: inputs of groups that are not there.
        """
        if self.bits == 4 and self.shape[0] % 2:
            return "outputs are an odd number"
        if self.block is not None and self.group % self.block:
            return f"groups of {self.group} inputs are no multiple of {BLOCKS[-1]}"
        return "inputs are in another order (desc_act)" if self._is_reordered() else None

    def _is_reordered(self) -> bool:
        """Whether inputs of a group are no neighbours."""
        if self.order is None:
            return False
        inputs = self.shape[1]
        order = self.order.read(0, inputs)
        if order.min() < 0 or order.max() >= inputs // self.group:
            raise CheckpointError(
                f"{self.order.path}: {self.order.key}: expected groups from 0 to "
                f"{inputs // self.group - 1}, found {order.min()} to {order.max()}; {FETCH_AGAIN}"
            )
        return not np.array_equal(order, np.arange(inputs) // self.group)

    @abstractmethod
    def rows(self, first: int, last: int) -> Codes:
        """Codes of the outputs `first` to `last` - 1, [.., inputs]."""

    @abstractmethod
    def pieces(self) -> Iterator[bytes]:
        """The codes as a package holds them, [inputs, outputs] row after row."""

    @abstractmethod
    def zeros_of_groups(self) -> Codes | None:
        """[groups, outputs]; None if there are none.

        Raises:
            CheckpointError: a zero that codes of this size cannot hold.
        """

    @abstractmethod
    def scales_of_groups(self) -> Floats:
        """[groups, outputs]."""

    def read_zeros(self) -> Codes | None:
        """The codes that stand for 0, [inputs / block, outputs]; None if all are 0.

        Raises:
            CheckpointError: as `zeros_of_groups`.
        """
        zeros = self.zeros_of_groups()
        if zeros is None or not zeros.any():
            return None
        return np.repeat(zeros, self._split, 0)

    def read_scales(self) -> Floats:
        """[inputs / block, outputs] float32.

        Raises:
            CheckpointError: a scale is not finite.
        """
        return np.repeat(self._finite_scales(), self._split, 0)

    def weights(self, first: int, last: int) -> Floats:
        """What the codes of the outputs `first` to `last` - 1 stand for, [.., inputs] float32.

        Raises:
            CheckpointError: as `read_zeros` and `read_scales`.
        """
        outputs = slice(first, last)
        codes, scales, zeros = self.rows(first, last), self._finite_scales(), self.zeros_of_groups()
        if self.order is None:
            own = None if zeros is None else zeros[:, outputs].T
            return dequantize(codes, scales[:, outputs].T, own)
        groups = self.order.read(0, self.shape[1])
        wide = codes.astype(np.float32)
        if zeros is not None:
            wide -= zeros[groups, outputs].T
        return wide * scales[groups, outputs].T

    @property
    def _split(self) -> int:
        return self.group // (self.block or self.group)

    def _finite_scales(self) -> Floats:
        scales = self.scales_of_groups()
        if not np.isfinite(scales).all():
            raise CheckpointError(
                f"{self.scales.path}: {self.scales.key}: expected finite scales, found others; "
                f"{FETCH_AGAIN}"
            )
        return scales


def check_parts(wanted: dict[Source, tuple[tuple[str, ...], tuple[int, ...]]]) -> None:
    """Refuse tensors of other dtypes and shapes than those `wanted`.

    Raises:
        CheckpointError: there is one.
    """
    for source, (dtypes, shape) in wanted.items():
        found = source.record
        if found.shape != shape or found.dtype not in dtypes:
            raise CheckpointError(
                f"{source.path}: {source.key}: expected {' or '.join(dtypes)} {list(shape)}, "
                f"found {found.dtype} {list(found.shape)}; config.json belongs to another "
                "checkpoint"
            )


@dataclass(frozen=True, slots=True)
class Dequantized(ComputedSource):
    """A quantized weight as what it stands for, rounded to the dtype of `record`.

    `why` says of which weights that is so: those whose ...
    """

    why: str


@dataclass(frozen=True, slots=True)
class DequantizedCodes(Dequantized):
    """What `stored` stands for."""

    piece_nbytes: ClassVar[int] = 8 * PIECE  # codes of some layouts are read whole for each piece

    stored: StoredCodes

    @classmethod
    def of(cls, stored: StoredCodes, dtype: str, why: str) -> DequantizedCodes:
        """The weight that `stored` stands for in `dtype` (F32, F16 or BF16)."""
        record = floats_record(dtype, stored.shape)
        return cls(stored.codes.key, stored.codes.path, record, why, stored)

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint."""
        return self.stored.nbytes

    def read_floats(self, first: int, last: int) -> Floats:
        """Rows `first` to `last` - 1 as float32."""
        return round_to(self.stored.weights(first, last), OF_STORED[self.record.dtype])


def floats_record(dtype: str, shape: tuple[int, ...]) -> TensorRecord:
    """The record of a weight of `shape` in `dtype` (F32, F16 or BF16) that lies in no file."""
    return TensorRecord(dtype, shape, 0, math.prod(shape) * ITEM_BITS[dtype] // 8)

"""Take the codes of GPTQ and AWQ checkpoints as they are, without quantizing again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from avl_export.checkpoint.packing_config import LARGEST, SMALLEST, WAY_OUT, Packing
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_export.checkpoint.source import PIECE, Floats, Source
from avl_export.quantize.blocks import Codes
from avl_export.quantize.packing import (
    AWQ_ORDER,
    MIDDLE,
    pack_int4,
    unpack_awq_rows,
    unpack_gptq_rows,
    unpack_words,
)


@dataclass(frozen=True, slots=True)
class PackedSource:
    """One linear's weight [outputs, inputs] as a GPTQ or AWQ checkpoint stores it.

    Attributes:
        codes: qweight, int32 [inputs / 8, outputs] (GPTQ) or [inputs, outputs / 8] (AWQ).
        zeros: qzeros, int32 [groups, outputs / 8].
        scales: [groups, outputs].
        order: g_idx, int32 [inputs], the group of each input; None: neighbours.
    """

    packing: Packing
    shape: tuple[int, int]
    codes: Source
    zeros: Source
    scales: Source
    order: Source | None

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.packing.group or self.shape[1]

    @property
    def block(self) -> int:
        """The block of the package: groups larger than backends take are split, losslessly."""
        return next(
            size
            for size in (LARGEST, LARGEST // 2, LARGEST // 4, SMALLEST)
            if self.group % size == 0
        )

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint."""
        sources = (self.codes, self.zeros, self.scales, self.order)
        return sum(source.record.nbytes for source in sources if source is not None)

    def check(self) -> None:
        """Refuse what blocks of neighbouring inputs cannot hold; reads g_idx.

        Raises:
            CheckpointError: shapes that do not fit each other, or inputs in another order.
        """
        outputs, inputs = self.shape
        if inputs % self.group or self.group % SMALLEST or outputs % 8:
            raise CheckpointError(
                f"{self.codes.path}: {self.codes.key}: expected inputs in groups of "
                f"{self.packing.group or inputs}, found a weight {list(self.shape)}; {WAY_OUT}"
            )
        groups = inputs // self.group
        awq = self.packing.method == "awq"
        wanted: dict[Source, tuple[str, tuple[int, ...]]] = {
            self.codes: ("I32", (inputs, outputs // 8) if awq else (inputs // 8, outputs)),
            self.zeros: ("I32", (groups, outputs // 8)),
            self.scales: (self.scales.record.dtype, (groups, outputs)),
        }
        if self.order is not None:
            wanted[self.order] = ("I32", (inputs,))
        for source, (dtype, shape) in wanted.items():
            found = source.record
            if found.shape != shape or found.dtype != dtype or found.dtype in ("BOOL", "U8"):
                raise CheckpointError(
                    f"{source.path}: {source.key}: expected {dtype} {list(shape)}, found "
                    f"{found.dtype} {list(found.shape)}; config.json belongs to another "
                    "checkpoint"
                )
        if self.order is not None:
            order = self.order.read(0, inputs)
            if not np.array_equal(order, np.arange(inputs) // self.group):
                raise CheckpointError(
                    f"{self.order.path}: {self.order.key}: expected groups of neighbouring inputs, "
                    "found inputs in another order (desc_act); quantize without desc_act, or "
                    f"{WAY_OUT}"
                )

    def read_zeros(self) -> Codes:
        """The signed codes that stand for 0, [inputs / block, outputs].

        Raises:
            CheckpointError: a code that 4 bits cannot hold.
        """
        words = self.zeros.read(0, self.zeros.record.shape[0])
        packed = AWQ_ORDER if self.packing.method == "awq" else tuple(range(8))
        zeros = unpack_words(words, packed) + self.packing.zero_offset - MIDDLE
        if zeros.max() >= MIDDLE:
            raise CheckpointError(
                f"{self.zeros.path}: {self.zeros.key}: expected codes of 0 from 0 to 15, found "
                f"16, which 4 bits cannot hold; {WAY_OUT}"
            )
        return np.repeat(zeros.astype(np.int8), self.group // self.block, 0)

    def read_scales(self) -> Floats:
        """[inputs / block, outputs] float32.

        Raises:
            CheckpointError: a scale is not finite.
        """
        scales = self.scales.read_floats(0, self.scales.record.shape[0])
        if not np.isfinite(scales).all():
            raise CheckpointError(
                f"{self.scales.path}: {self.scales.key}: expected finite scales, found others; "
                "fetch the checkpoint again"
            )
        return np.repeat(scales, self.group // self.block, 0)

    def pieces(self) -> Iterator[bytes]:
        """The codes as ONNX packs them, [inputs, outputs] row after row."""
        gptq = self.packing.method == "gptq"
        rows, columns = self.codes.record.shape
        unpack = unpack_gptq_rows if gptq else unpack_awq_rows
        step = max(1, PIECE // 8 // (4 * columns))
        for first in range(0, rows, step):
            codes = unpack(self.codes.read(first, min(first + step, rows))) - np.int8(MIDDLE)
            yield pack_int4(codes).tobytes()

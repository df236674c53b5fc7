"""Weights in FP8, with scales for blocks of outputs and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from avl_export.checkpoint.packings.packing import Packing
from avl_export.checkpoint.safetensors_header import FETCH_AGAIN, CheckpointError
from avl_export.checkpoint.source import OF_STORED, Floats, Source, round_to, to_float32
from avl_export.checkpoint.weight_map import STORED
from avl_export.quantize.codes import Dequantized, check_parts, floats_record

FP8 = "F8_E4M3"


@dataclass(frozen=True, slots=True)
class DequantizedFp8(Dequantized):
    """A weight [outputs, inputs] that is stored as FP8 (E4M3) times scales.

    Attributes:
        values: F8_E4M3 [outputs, inputs].
        scales: [outputs / rows, inputs / columns], the last block of each may be a part of one.
        block: rows and columns.
    """

    values: Source
    scales: Source
    block: tuple[int, int]

    @classmethod
    def of(
        cls, packing: Packing, shape: tuple[int, int], parts: Mapping[str, Source], dtype: str
    ) -> DequantizedFp8:
        """The weight of `shape` that `parts` make, by their names, in `dtype`.

        Raises:
            CheckpointError: they do not fit each other.
        """
        outputs, inputs = shape
        values = parts["weight"]
        scales = parts.get("weight_scale_inv") or parts["weight_scale"]
        found = scales.record.shape
        if found in ((), (1,), (1, 1)):
            block = shape
        elif found in ((outputs,), (outputs, 1)) or packing.block is None:
            block = (1, inputs)
        else:
            block = packing.block
        wanted: tuple[int, ...] = (-(-outputs // block[0]), -(-inputs // block[1]))
        if found in ((), (1,), (outputs,)):  # the same without dimensions of 1
            wanted = found
        check_parts({values: ((FP8,), shape), scales: (STORED, wanted)})
        record = floats_record(dtype, shape)
        return cls(values.key, values.path, record, "codes are FP8", values, scales, block)

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint."""
        return self.values.nbytes + self.scales.nbytes

    def read_floats(self, first: int, last: int) -> Floats:
        """Rows `first` to `last` - 1 as float32.

        Raises:
            CheckpointError: one is not finite.
        """
        rows, columns = self.block
        inputs = self.record.shape[1]
        scales = to_float32(self.scales.read_whole(), self.scales.record.dtype)
        scales = scales.reshape(-1, -(-inputs // columns))
        wide = np.repeat(scales[np.arange(first, last) // rows], columns, 1)[:, :inputs]
        floats: Floats = _values()[self.values.read(first, last)] * wide
        if not np.isfinite(floats).all():
            raise CheckpointError(
                f"{self.path}: {self.key}: expected finite weights, found others; {FETCH_AGAIN}"
            )
        return round_to(floats, OF_STORED[self.record.dtype])


@cache
def _values() -> Floats:
    """What each of the 256 values of E4M3 stands for: https://arxiv.org/abs/2209.05433."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    least = np.ldexp(mantissa / 8, -6)  # without an implied 1
    values = np.where(exponent == 0, least, np.ldexp(1 + mantissa / 8, exponent - 7))
    values[bits & 127 == 127] = np.nan  # there is nothing infinite
    return np.where(bits >= 128, -values, values).astype(np.float32)

"""Weights of HQQ checkpoints, whose codes of 0 lie between codes.

Layout: https://github.com/mobiusml/hqq, `HQQLinear.state_dict` and `BitPack`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from avl_export.checkpoint.packings.packing import WAY_OUT
from avl_export.checkpoint.safetensors_header import FETCH_AGAIN, CheckpointError
from avl_export.checkpoint.source import OF_STORED, Floats, Source, round_to, to_float32
from avl_export.checkpoint.weight_map import STORED
from avl_export.quantize.codes import Dequantized, check_parts, floats_record
from avl_plugins.errors import shown

CODES = "U8"
PACKINGS = {4: "4bit_u8", 8: "8bit_u8"}
MOST_TEXT = 64  # bytes of the name of a packing


@dataclass(frozen=True, slots=True)
class DequantizedHqq(Dequantized):
    """A weight [outputs, inputs] that is stored as (code - zero) * scale.

    All weights of a matrix, row after row, are cut into as many rows as a group has weights (axis
    0) or as there are groups (axis 1). Of 4 bits the first half of these rows lie in the high
    halves of bytes, the others in the low ones.

    Attributes:
        codes: U8, of all weights, two a byte at 4 bits.
        scales, zeros: a number for each group.
        bits, group, axis: as above.
    """

    codes: Source
    scales: Source
    zeros: Source
    bits: int
    group: int
    axis: int

    @classmethod
    def of(cls, shape: tuple[int, int], parts: Mapping[str, Source], dtype: str) -> DequantizedHqq:
        """The weight of `shape` that `parts` make, by their names, in `dtype`.

        Raises:
            CheckpointError: they do not fit each other.
        """
        codes = parts["W_q"]
        bits, axis, group = (_number(parts[name]) for name in ("nbits", "axis", "group_size"))
        count = shape[0] * shape[1]
        known = bits in PACKINGS and axis in (0, 1) and group > 0 and count % (2 * group) == 0
        said = _text(parts["packing"])
        if not known or said != PACKINGS[bits] or any(_is_true(parts, n) for n in REFUSED):
            raise CheckpointError(
                f"{codes.path}: {codes.key}: expected codes of 4 or 8 bits in whole groups, as "
                f"bytes, found {bits} bits, groups of {group} along axis {axis}, packed as {said}"
                f"{''.join(f', {n}' for n in REFUSED if _is_true(parts, n))}; {WAY_OUT}"
            )
        rows, columns = (group, count // group) if axis == 0 else (count // group, group)
        table = (1, columns) if axis == 0 else (rows, 1)
        check_parts(
            {
                codes: ((CODES,), (rows * bits // 8, columns)),
                parts["scale"]: (STORED, table),
                parts["zero"]: (STORED, table),
                parts["shape"]: (("I64",), (2,)),
            }
        )
        told = tuple(int(size) for size in parts["shape"].read_whole())
        if told != shape:
            raise CheckpointError(
                f"{codes.path}: {codes.key}: expected {list(shape)} as config.json says, found "
                f"{list(told)}; config.json belongs to another checkpoint"
            )
        return cls(
            key=codes.key,
            path=codes.path,
            record=floats_record(dtype, shape),
            why="codes of 0 lie between codes (hqq)",
            codes=codes,
            scales=parts["scale"],
            zeros=parts["zero"],
            bits=bits,
            group=group,
            axis=axis,
        )

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint."""
        return self.codes.nbytes + self.scales.nbytes + self.zeros.nbytes

    def read_floats(self, first: int, last: int) -> Floats:
        """Rows `first` to `last` - 1 as float32.

        Raises:
            CheckpointError: one is not finite.
        """
        inputs = self.record.shape[1]
        begin, end = first * inputs, last * inputs
        place = np.arange(begin, end)
        groups = self.record.shape[0] * inputs // self.group
        own = place % groups if self.axis == 0 else place // self.group
        scales, zeros = (
            to_float32(source.read_whole(), source.record.dtype).reshape(-1)[own]
            for source in (self.scales, self.zeros)
        )
        floats: Floats = ((self._codes(begin, end) - zeros) * scales).reshape(last - first, inputs)
        if not np.isfinite(floats).all():
            raise CheckpointError(
                f"{self.path}: {self.key}: expected finite weights, found others; {FETCH_AGAIN}"
            )
        return round_to(floats, OF_STORED[self.record.dtype])

    def _codes(self, first: int, last: int) -> Floats:
        """Codes of the weights `first` to `last` - 1, counted row after row."""
        count = self.codes.record.nbytes
        flat = replace(self.codes, record=replace(self.codes.record, shape=(count,)))
        if self.bits == 8:
            return flat.read(first, last).astype(np.float32)
        high = flat.read(min(first, count), min(last, count)) >> np.uint8(4)
        low = flat.read(max(first, count) - count, max(last, count) - count) & np.uint8(15)
        return np.concatenate([high, low]).astype(np.float32)


# What makes other numbers of the same bytes.
REFUSED = ("view_as_float", "quant_scale", "quant_zero")


def _number(source: Source) -> int:
    if source.record.shape not in ((), (1,)) or source.record.dtype != "I32":
        return -1
    return int(source.read_whole()[0])


def _is_true(parts: Mapping[str, Source], name: str) -> bool:
    source = parts.get(name)
    return source is not None and bool(source.read_whole().any())


def _text(source: Source) -> str:
    if source.record.dtype != CODES or source.record.nbytes > MOST_TEXT:
        return "something else"
    return shown(bytes(source.read_whole()).decode("ascii", "replace"), MOST_TEXT)

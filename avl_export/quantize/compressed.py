"""Codes of compressed-tensors and torchao: whole rows of an output, in words or in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from avl_export.checkpoint.packings.packing import WAY_OUT, Packing
from avl_export.checkpoint.safetensors_header import FETCH_AGAIN, CheckpointError
from avl_export.checkpoint.source import PIECE, Floats, Source, to_float32
from avl_export.checkpoint.weight_map import STORED
from avl_export.quantize.blocks import Codes, limits
from avl_export.quantize.codes import StoredCodes, check_parts
from avl_export.quantize.packing import pack_int4, turn_bytes, unpack_words

UNSIGNED = {4: np.uint8(0x88), 8: np.uint8(0x80)}  # the bits that tell stored codes from signed
BYTES = "I8"  # of codes with a sign, which lie in no words


@dataclass(frozen=True, slots=True)
class CompressedCodes(StoredCodes):
    """One linear's weight as compressed-tensors or torchao stores it.

    With n codes a word, lowest bits first, less their middle: weight_packed, int32
    [outputs, inputs / n], with weight_zero_point, int32 [outputs / n, groups]; or weight and
    weight_zero_point as signed bytes, [outputs, inputs] and [outputs, groups]. Last words are
    filled up. weight_scale is [outputs, groups], or [1] of a whole tensor.
    """

    @classmethod
    def of(
        cls, packing: Packing, shape: tuple[int, int], parts: Mapping[str, Source]
    ) -> CompressedCodes:
        """The weight of `shape` that `parts` make, by their names.

        Raises:
            CheckpointError: they do not fit each other.
        """
        outputs, inputs = shape
        codes = parts.get("weight_packed") or parts["weight"]
        scales, zeros = parts["weight_scale"], parts.get("weight_zero_point")
        bits = _bits(packing, codes, inputs)
        groups = scales.record.shape[-1] if len(scales.record.shape) == 2 else 1
        if groups == 0 or inputs % groups:
            raise CheckpointError(
                f"{scales.path}: {scales.key}: expected scales of groups that are equal parts of "
                f"{inputs} inputs, found {list(scales.record.shape)}; {WAY_OUT}"
            )
        found = cls(
            shape=shape,
            bits=bits,
            group=inputs // groups,
            codes=codes,
            scales=scales,
            zeros=zeros,
            order=_order(parts.get("weight_g_idx"), inputs),
        )
        words = 32 // bits
        wanted: dict[Source, tuple[tuple[str, ...], tuple[int, ...]]] = {
            codes: ((BYTES,), shape)
            if codes.record.dtype == BYTES
            else (("I32",), (outputs, -(-inputs // words))),
            scales: (STORED, scales.record.shape if found._is_single else (outputs, groups)),
        }
        if zeros is not None:
            packed = zeros.record.dtype != BYTES
            own = (-(-outputs // words), groups) if packed else (outputs, groups)
            single = zeros.record.shape if found._is_single and not packed else own
            wanted[zeros] = (("I32",) if packed else (BYTES,), single)
        check_parts(wanted)
        found._check_shape(parts.get("weight_shape"))
        return found

    def zeros_of_groups(self) -> Codes | None:
        if self.zeros is None:
            return None
        outputs, inputs = self.shape
        stored = self.zeros.read_whole()
        if self.zeros.record.dtype != BYTES:  # words of neighbouring outputs
            stored = unpack_words(np.ascontiguousarray(stored.T), self.bits)[:, :outputs].T
        table = np.broadcast_to(stored.reshape(-1, inputs // self.group), self._table)
        return self._narrow(np.ascontiguousarray(table.T))

    def scales_of_groups(self) -> Floats:
        scales = to_float32(self.scales.read_whole(), self.scales.record.dtype)
        return np.ascontiguousarray(
            np.broadcast_to(scales.reshape(-1, self._table[1]), self._table).T
        )

    def rows(self, first: int, last: int) -> Codes:
        codes: Codes = self.codes.read(first, last)
        if self.codes.record.dtype != BYTES:
            codes = unpack_words(codes, self.bits)
        return codes[:, : self.shape[1]]

    def pieces(self) -> Iterator[bytes]:
        outputs, inputs = self.shape
        stored = self.codes.read(0, outputs).view(np.uint8).reshape(outputs, -1)
        in_words = self.codes.record.dtype != BYTES
        width = self.bits if in_words else 8  # bits from one code to the next
        step = max(2, PIECE // 8 // (2 * outputs) * 2)  # inputs; 4 bits share bytes by twos
        for first in range(0, inputs, step):
            last = min(first + step, inputs)
            part = stored[:, first * width // 8 : -(-last * width // 8)]
            if in_words:
                part = part ^ UNSIGNED[self.bits]
            if width == 4:
                yield turn_bytes(part)[: last - first].tobytes()
            else:
                codes = np.ascontiguousarray(part.T).view(np.int8)
                yield (codes if self.bits == 8 else pack_int4(self._narrow(codes))).tobytes()

    def _narrow(self, codes: Codes) -> Codes:
        """Bytes that hold codes of 4 bits.

        Raises:
            CheckpointError: they hold others.
        """
        least, most = limits(self.bits)
        if codes.min() < least or codes.max() > most:
            raise CheckpointError(
                f"{self.codes.path}: {self.codes.key}: expected codes from {least} to {most} as "
                f"config.json says, found {codes.min()} to {codes.max()}; {WAY_OUT}"
            )
        return codes

    @property
    def _is_single(self) -> bool:
        """Whether all weights share one scale."""
        return self.scales.record.shape in ((), (1,), (1, 1))

    @property
    def _table(self) -> tuple[int, int]:
        return self.shape[0], self.shape[1] // self.group

    def _check_shape(self, told: Source | None) -> None:
        if told is None:
            return
        check_parts({told: (("I64", "I32"), (2,))})
        found = tuple(int(size) for size in told.read(0, 2))
        if found != self.shape:
            raise CheckpointError(
                f"{told.path}: {told.key}: expected {list(self.shape)} as config.json says, found "
                f"{list(found)}; config.json belongs to another checkpoint"
            )


def _order(order: Source | None, inputs: int) -> Source | None:
    """The groups of inputs; None where -1 says that they are in no other order than their own."""
    if order is None:
        return None
    check_parts({order: (("I32",), (inputs,))})
    return None if (order.read_whole() == -1).any() else order


def _bits(packing: Packing, codes: Source, inputs: int) -> Literal[4, 8]:
    """The bits of a code, which the width of its tensor tells apart."""
    if codes.record.dtype == BYTES:
        return 4 if packing.bits == (4,) else 8
    width = codes.record.shape[-1] if codes.record.shape else 0
    for bits in packing.bits:
        if width == -(-inputs * bits // 32):
            return 4 if bits == 4 else 8
    told = " or ".join(map(str, packing.bits))
    raise CheckpointError(
        f"{codes.path}: {codes.key}: expected words of {told} bits for {inputs} inputs, found "
        f"{codes.record.dtype} {list(codes.record.shape)}; {FETCH_AGAIN}"
    )

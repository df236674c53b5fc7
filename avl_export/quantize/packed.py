"""Codes of GPTQ and AWQ checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from avl_export.checkpoint.packings.packing import WAY_OUT, Packing
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_export.checkpoint.source import PIECE, Floats, Source
from avl_export.checkpoint.weight_map import STORED
from avl_export.quantize.blocks import Codes, limits
from avl_export.quantize.codes import StoredCodes, check_parts
from avl_export.quantize.packing import (
    AWQ_ORDER,
    pack_int4,
    unpack_awq_rows,
    unpack_gptq_rows,
    unpack_words,
)


@dataclass(frozen=True, slots=True)
class PackedCodes(StoredCodes):
    """One linear's weight as a GPTQ or AWQ checkpoint stores it.

    With n codes a word, the tensors are qweight, int32 [inputs / n, outputs] (GPTQ) or
    [inputs, outputs / n] (AWQ), qzeros, int32 [groups, outputs / n], scales, [groups, outputs], and
    g_idx as `order`.
    """

    packing: Packing

    @classmethod
    def of(
        cls, packing: Packing, shape: tuple[int, int], parts: Mapping[str, Source]
    ) -> PackedCodes:
        """The weight of `shape` that `parts` make, by their names.

        Raises:
            CheckpointError: they do not fit each other.
        """
        outputs, inputs = shape
        group, bits = packing.group or inputs, packing.bits[0]
        if len(packing.bits) > 1:
            bits, group = _own(packing, shape, parts)
        if inputs % group or outputs % (32 // bits) or inputs % (32 // bits):
            raise CheckpointError(
                f"{parts['qweight'].path}: {parts['qweight'].key}: expected inputs in groups of "
                f"{group} and whole words, found a weight {list(shape)}; {WAY_OUT}"
            )
        found = cls(
            shape=shape,
            bits=4 if bits == 4 else 8,
            group=group,
            codes=parts["qweight"],
            scales=parts["scales"],
            zeros=parts["qzeros"],
            order=parts.get("g_idx"),
            packing=packing,
        )
        words, groups = 32 // bits, inputs // group
        awq = packing.layout == "awq"
        wanted: dict[Source, tuple[tuple[str, ...], tuple[int, ...]]] = {
            found.codes: (
                ("I32",),
                (inputs, outputs // words) if awq else (inputs // words, outputs),
            ),
            parts["qzeros"]: (("I32",), (groups, outputs // words)),
            found.scales: (STORED, (groups, outputs)),
        }
        if found.order is not None:
            wanted[found.order] = (("I32",), (inputs,))
        check_parts(wanted)
        return found

    def zeros_of_groups(self) -> Codes | None:
        if self.zeros is None:
            return None
        words = self.zeros.read_whole()
        order = AWQ_ORDER if self.packing.layout == "awq" else None
        zeros = unpack_words(words, self.bits, order).astype(np.int16) + self.packing.zero_offset
        if zeros.max() > limits(self.bits)[1]:
            most = (1 << self.bits) - 1
            raise CheckpointError(
                f"{self.zeros.path}: {self.zeros.key}: expected codes of 0 from 0 to {most}, found "
                f"{most + 1}, which {self.bits} bits cannot hold; {WAY_OUT}"
            )
        return zeros.astype(np.int8)

    def scales_of_groups(self) -> Floats:
        return self.scales.read_floats(0, self.scales.record.shape[0])

    def rows(self, first: int, last: int) -> Codes:
        words = self.codes.read_whole()
        if self.packing.layout == "gptq":
            return unpack_gptq_rows(words[:, first:last], self.bits).T
        begin = first // 8
        codes = unpack_awq_rows(words[:, begin : -(-last // 8)])
        return codes[:, first - 8 * begin : last - 8 * begin].T

    def pieces(self) -> Iterator[bytes]:
        unpack = unpack_gptq_rows if self.packing.layout == "gptq" else unpack_awq_rows
        rows, columns = self.codes.record.shape
        step = max(1, PIECE // 8 // (4 * columns))
        for first in range(0, rows, step):
            codes = unpack(self.codes.read(first, min(first + step, rows)), self.bits)
            yield (pack_int4(codes) if self.bits == 4 else codes).tobytes()


def _own(packing: Packing, shape: tuple[int, int], parts: Mapping[str, Source]) -> tuple[int, int]:
    """Bits and inputs that share a scale, by the shapes of the tensors: weights have their own."""
    _, inputs = shape
    words, scales = parts["qweight"].record.shape, parts["scales"].record.shape
    fitting = [bits for bits in packing.bits if words and words[0] * 32 == inputs * bits]
    groups = scales[0] if scales and scales[0] else 1
    return (fitting or [*packing.bits])[0], inputs // groups or inputs

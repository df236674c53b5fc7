"""A model's floating-point type in memory, and NumPy's view of it: NumPy has no bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Element:
    """A floating-point type.

    Attributes:
        stored: NumPy's type of the same bits; uint16 for bfloat16.
        host: the type in which the host computes with such values.
    """

    name: str
    stored: np.dtype[Any]
    host: np.dtype[Any]

    @property
    def words(self) -> int:
        """16-bit words of a value, which is what the kernels move."""
        return self.stored.itemsize // 2

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values as they are stored; what is stored already stays as it is."""
        if values.dtype == self.stored:
            return np.ascontiguousarray(values)
        if self.name != "bf16":
            return np.ascontiguousarray(values, self.stored)
        wide = np.ascontiguousarray(values, np.float32)
        bits = wide.view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties to even
        return np.where(np.isnan(wide), 0x7FC0, nearest).astype(np.uint16)

    def decode(self, stored: NDArray[Any]) -> NDArray[Any]:
        """What is stored, in the type of the host."""
        if self.name != "bf16":
            return stored
        return (stored.astype(np.uint32) << 16).view(np.float32)


ELEMENTS = {
    "fp32": Element("fp32", np.dtype(np.float32), np.dtype(np.float32)),
    "fp16": Element("fp16", np.dtype(np.float16), np.dtype(np.float16)),
    "bf16": Element("bf16", np.dtype(np.uint16), np.dtype(np.float32)),
}

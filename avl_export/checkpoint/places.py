"""Where quantized tensors lie in a package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avl_export.checkpoint.safetensors_header import TensorRecord

Part = Literal["decoder", "lm_head", "vision", "embedding"]
PARTS: tuple[Part, ...] = ("decoder", "lm_head", "vision", "embedding")


@dataclass(frozen=True, slots=True)
class QuantizedPlace:
    """Codes and scales of one weight [outputs, inputs] in the file `location`.

    Linears are stored as [inputs, outputs], which is what DequantizeLinear and Gemm are fused
    from; under `by_rows` the embedding as it is looked up, [rows, columns], and stacks of experts'
    weights [experts, outputs, inputs] as they are.

    Attributes:
        block: inputs that share a scale, None for one scale an output.
        codes: 8 bits as I8; 4 bits as U8, the even element of a row in the low half.
        scales: [inputs / block, outputs], [outputs], or [.., rows, columns / block].
        zeros: codes that stand for 0, like `codes` with the shape of `scales`; None: all are 0.
    """

    location: str
    shape: tuple[int, ...]
    bits: Literal[4, 8]
    block: int | None
    codes: TensorRecord
    scales: TensorRecord
    zeros: TensorRecord | None = None
    by_rows: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zeros."""
        records = (self.codes, self.scales, self.zeros)
        return sum(record.nbytes for record in records if record is not None)

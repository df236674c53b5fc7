"""How a package's weights are quantized: its entry in the manifest, and its packing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

EXPERTS = "experts"  # of the decoder, among what is quantized


@dataclass(frozen=True, slots=True)
class RowScales:
    """Scales of a quantized table of tokens, in the file that holds its codes.

    A row's codes stand for code * scale. `offset` is where scales [rows, columns / block_size]
    begin; `block_size` columns share one.
    """

    offset: int
    dtype: Literal["F32", "F16", "BF16"]
    block_size: int


@dataclass(frozen=True, slots=True)
class Quantization:
    """Weights as codes of `bits` bits, which graphs read through DequantizeLinear.

    Attributes:
        method: rtn, clip or hqq; for codes that the checkpoint already held, the method that made
            them.
        bits: of the codes; some of those that a checkpoint held may have 8 where this is 4.
        block_size: inputs of a linear that share a scale, None for one scale an output; of codes
            that a checkpoint held, the fewest.
        parts: what is quantized: decoder (its layers' linears), lm_head, vision, embedding, and
            EXPERTS where those of the layers are too.
        zero_points: whether some codes that stand for 0 are not 0, which TensorRT refuses.
        embedding: set where the token embedding is quantized; its dtype then is I4 or I8.
        layer_table: the same of the table of layers' inputs.
    """

    method: str
    bits: Literal[4, 8]
    block_size: int | None
    parts: tuple[str, ...]
    zero_points: bool
    embedding: RowScales | None
    layer_table: RowScales | None = None


def unpack_int4(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """[.., n] bytes -> [.., 2 n] signed codes, the even one from the low half of each byte."""
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.int8)
    # Shifted to the top and back, a half's highest bit becomes its sign.
    codes[..., 0::2] = (packed << 4).view(np.int8) >> 4
    codes[..., 1::2] = packed.view(np.int8) >> 4
    return codes

"""INT4 codes as bytes: ONNX's own packing, and the packings of GPTQ and AWQ checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]

# AWQ packs eight neighbouring outputs into 32 bits in this order, lowest bits first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
MIDDLE = 8  # the unsigned code that a signed 0 is stored as


def pack_int4(codes: Codes) -> Bytes:
    """[.., n] codes from -8 to 7 -> [.., n / 2] bytes, the even code in the low half; n is even."""
    halves: Bytes = codes.view(np.uint8) & np.uint8(15)
    packed: Bytes = halves[..., 0::2] | (halves[..., 1::2] << np.uint8(4))
    return packed


def unpack_words(words: npt.NDArray[Any], order: tuple[int, ...] = tuple(range(8))) -> Codes:
    """[.., n] 32-bit words -> [.., 8 n] codes from 0 to 15.

    `order` says which of the eight codes each group of four bits holds, lowest bits first.
    """
    words = words.view(np.uint32)
    codes = np.empty((*words.shape, 8), np.int8)
    for place, code in enumerate(order):
        codes[..., code] = (words >> np.uint32(4 * place)) & np.uint32(15)
    return codes.reshape(*words.shape[:-1], 8 * words.shape[-1])


def unpack_gptq_rows(words: npt.NDArray[Any]) -> Codes:
    """GPTQ's qweight [inputs / 8, outputs], eight inputs a word -> codes 0 to 15 [inputs, outputs].

    Layout: https://github.com/AutoGPTQ/AutoGPTQ, `QuantLinear.pack`.
    """
    return np.ascontiguousarray(unpack_words(np.ascontiguousarray(words.T)).T)


def unpack_awq_rows(words: npt.NDArray[Any]) -> Codes:
    """AWQ's qweight [inputs, outputs / 8], eight outputs a word -> codes 0 to 15 [inputs, outputs].

    Layout: https://github.com/mit-han-lab/llm-awq, `WQLinear_GEMM.from_linear`.
    """
    return unpack_words(words, AWQ_ORDER)

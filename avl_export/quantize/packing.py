"""Codes as bytes: ONNX's own packing of 4 bits, and words as quantized checkpoints hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]

# AWQ packs eight neighbouring outputs into 32 bits in this order, lowest bits first.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack_int4(codes: Codes) -> Bytes:
    """[.., n] codes from -8 to 7 -> [.., n / 2] bytes, the even code in the low half; n is even."""
    halves: Bytes = codes.view(np.uint8) & np.uint8(15)
    packed: Bytes = halves[..., 0::2] | (halves[..., 1::2] << np.uint8(4))
    return packed


def unpack_words(
    words: npt.NDArray[Any], bits: int = 4, order: tuple[int, ...] | None = None
) -> Codes:
    """[.., n] 32-bit words -> [.., n * 32 / bits] signed codes: stored ones less their middle.

    `order` says which of a word's codes each group of bits holds, lowest bits first.
    """
    words = words.view(np.uint32)
    count, mask, middle = 32 // bits, np.uint32((1 << bits) - 1), np.uint8(1 << (bits - 1))
    codes = np.empty((*words.shape, count), np.uint8)
    for place, code in enumerate(order or range(count)):
        codes[..., code] = (words >> np.uint32(bits * place)) & mask
    codes -= middle  # wraps to the bits of the signed code
    return codes.view(np.int8).reshape(*words.shape[:-1], count * words.shape[-1])


def unpack_gptq_rows(words: npt.NDArray[Any], bits: int = 4) -> Codes:
    """GPTQ's qweight [inputs * bits / 32, outputs], several inputs a word -> [inputs, outputs].

    Layout: https://github.com/AutoGPTQ/AutoGPTQ, `QuantLinear.pack`.
    """
    return np.ascontiguousarray(unpack_words(np.ascontiguousarray(words.T), bits).T)


def unpack_awq_rows(words: npt.NDArray[Any], bits: int = 4) -> Codes:
    """AWQ's qweight [inputs, outputs / 8], eight outputs a word -> [inputs, outputs].

    Layout: https://github.com/mit-han-lab/llm-awq, `WQLinear_GEMM.from_linear`.
    """
    return unpack_words(words, bits, AWQ_ORDER)


def turn_bytes(rows: Bytes) -> Bytes:
    """Bytes of 4-bit codes [outputs, inputs / 2] -> [inputs, outputs / 2], as `pack_int4` packs.

    In both the even code of a row is in the low half; outputs are even.
    """
    turned = np.ascontiguousarray(rows.T)
    even, odd = turned[:, 0::2], turned[:, 1::2]
    found = np.empty((2 * len(turned), even.shape[1]), np.uint8)
    np.bitwise_or(even & np.uint8(15), odd << np.uint8(4), out=found[0::2])
    np.bitwise_or(even >> np.uint8(4), odd & np.uint8(240), out=found[1::2])
    return found

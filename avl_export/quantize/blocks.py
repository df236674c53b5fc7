"""Quantize blocks of weights: which scale, which codes.

Everything is symmetric: a weight is scale * code, with a positive scale for each block of
neighbouring inputs of one output. Positive, because TensorRT takes no other.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from avl_export.checkpoint.source import Floats, round_to

Method = Literal["rtn", "clip", "hqq"]
SPAN = 32  # inputs that share a scale are a multiple of these where kernels take codes
# Measured by scripts/quantization.py: clip errs least at 4 bits; at 8 bits all are the same.
BEST: dict[int, Method] = {4: "clip", 8: "rtn"}

Codes = npt.NDArray[np.int8]

RATIOS = np.linspace(0.65, 1.05, 9, dtype=np.float32)
# The constants of half-quadratic quantization, as in https://github.com/mobiusml/hqq.
NORM, STIFFNESS, STIFFENING, ROUNDS = 0.7, 10.0, 1.01, 20


def limits(bits: int) -> tuple[int, int]:
    """The lowest and highest code."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def quantize(
    weights: Floats, bits: int, block: int, method: Method, scale_dtype: str = "fp32"
) -> tuple[Codes, Floats]:
    """Quantize rows of a linear layer's weight.

    Args:
        weights: [outputs, inputs]; `block` divides `inputs`.
        scale_dtype: what the scales are rounded to (fp32, fp16 or bf16) before codes are chosen;
            float32 ones to what 16 bits hold too, where that is near.

    Returns:
        codes [outputs, inputs] and scales [outputs, inputs / block], all above zero.
    """
    outputs, inputs = weights.shape
    blocks = weights.reshape(outputs, inputs // block, block)
    scales = _SCALES[method](blocks, bits)
    # A block of zeros, or of weights that the scale's dtype cannot tell from zero.
    scales = np.maximum(round_to(scales, scale_dtype), _TINY[scale_dtype])
    if scale_dtype == "fp32":
        scales = _in_16_bits(np.where(blocks.any(-1, keepdims=True), scales, _ANY))
    codes = _round(blocks, scales, bits, np.empty_like(blocks))
    return codes.astype(np.int8).reshape(outputs, inputs), scales[..., 0]


def dequantize(codes: npt.NDArray[Any], scales: Floats, zeros: Codes | None = None) -> Floats:
    """Weights [outputs, inputs] of codes [outputs, inputs] and scales [outputs, blocks].

    `zeros` [outputs, blocks] are the codes that stand for 0, where that is not 0.
    """
    outputs, count = scales.shape
    blocks = codes.reshape(outputs, count, -1).astype(np.float32)
    if zeros is not None:
        blocks -= zeros[..., None]
    return (blocks * scales[..., None]).reshape(outputs, -1)


_TINY = {
    "fp32": np.float32(2.0**-126),
    "fp16": np.float32(2.0**-24),
    "bf16": np.float32(2.0**-126),
}


_ANY = np.float32(2.0**-14)  # the scale of nothing but zeros: the least normal number of 16 bits


def _in_16_bits(scales: Floats) -> Floats:
    """The nearest numbers that 16 bits hold, where that changes no more than their last bit.

    Kernels read such scales in half the bytes, which is a twentieth of a weight's in blocks of 64.
    Codes are chosen for what scales are then, so that next to nothing is lost.
    """
    with np.errstate(over="ignore"):  # which is then not near
        near = round_to(scales, "fp16")
    found: Floats = np.where(np.abs(near - scales) <= scales * np.float32(2.0**-11), near, scales)
    return found


def _round(blocks: Floats, scales: Floats, bits: int, out: Floats) -> Floats:
    """The nearest codes, as floats, in `out`."""
    np.divide(blocks, scales, out=out)
    np.rint(out, out=out)
    return np.clip(out, *limits(bits), out=out)


def _largest(blocks: Floats) -> Floats:
    """The largest magnitude of each block, [.., 1], at least the smallest normal float."""
    largest: Floats = np.maximum(np.abs(blocks).max(-1, keepdims=True), _TINY["fp32"])
    return largest


def _rtn_scales(blocks: Floats, bits: int) -> Floats:
    """The largest magnitude gets the highest code."""
    scales = _largest(blocks)
    scales /= np.float32(limits(bits)[1])
    return scales


def _clip_scales(blocks: Floats, bits: int) -> Floats:
    """The scale with the least squared error.

    Given codes q the best scale is <w, q> / <q, q>, which explains <w, q>^2 / <q, q> of the
    weights' energy. Candidate codes come from scales that clip the largest weights more or less.
    """
    largest, highest = _largest(blocks), limits(bits)[1]
    scales, explained = largest / np.float32(highest), np.zeros_like(largest)
    codes = np.empty_like(blocks)
    for ratio in RATIOS:
        _round(blocks, largest * (ratio / highest), bits, codes)
        along = np.einsum("rbk,rbk->rb", blocks, codes)[..., None]
        energy = np.maximum(np.einsum("rbk,rbk->rb", codes, codes)[..., None], 1)
        gain = along * along / energy
        better = gain > explained
        np.copyto(explained, gain, where=better)
        np.copyto(scales, along / energy, where=better)
    return scales


def _hqq_scales(blocks: Floats, bits: int) -> Floats:
    """Scales that make the errors sparse: the least sum of |error|^0.7 seen on the way.

    Half-quadratic quantization (https://mobiusml.github.io/hqq_blog/) for a symmetric quantizer:
    alternately shrink the errors towards zero, as outliers may keep theirs, and fit the scale to
    the weights without them.
    """
    unit = np.sqrt(np.mean(np.square(blocks), (1, 2), keepdims=True))
    unit = np.maximum(unit, _TINY["fp32"])  # what an output's weights usually are
    blocks = blocks / unit
    scales = _rtn_scales(blocks, bits)
    best, least = scales, np.full_like(scales, np.inf)
    codes, stiffness = np.empty_like(blocks), STIFFNESS
    for _ in range(ROUNDS):
        _round(blocks, scales, bits, codes)
        errors = blocks - codes * scales
        size = np.abs(errors)
        total = np.power(size, NORM).sum(-1, keepdims=True)
        better = total < least
        np.copyto(least, total, where=better)
        best = np.where(better, scales, best)
        shrunk = np.maximum(size - np.power(np.maximum(size, 1e-8), NORM - 1) / stiffness, 0)
        fitted = blocks - np.copysign(shrunk, errors)
        along = np.einsum("rbk,rbk->rb", fitted, codes)[..., None]
        energy = np.maximum(np.einsum("rbk,rbk->rb", codes, codes)[..., None], 1)
        scales = np.where(along > 0, along / energy, scales)
        stiffness *= STIFFENING
    best *= unit
    return best


_SCALES = {"rtn": _rtn_scales, "clip": _clip_scales, "hqq": _hqq_scales}

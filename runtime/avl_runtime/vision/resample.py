"""Frames and pictures resized to the last bit as torchvision does, where Hugging Face uses it.

Pillow, which resizes most pictures, rounds at other places: the two differ by some steps of 255.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Resampling

from avl_runtime.vision.load.images import ImageError

Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]

BILINEAR, BICUBIC = int(Resampling.BILINEAR), int(Resampling.BICUBIC)
LANCZOS = int(Resampling.LANCZOS)
BITS = 15  # weights are 16-bit integers


def resize(pixels: NDArray[np.uint8], height: int, width: int, resample: int) -> NDArray[np.uint8]:
    """[..., H, W, 3] -> [..., height, width, 3], antialiased.

    The same as `torch.nn.functional.interpolate(antialias=True)` of uint8 on a CPU: along rows and
    then along columns, each in integer arithmetic.

    Args:
        resample: Pillow's number of a filter in KERNELS.

    Raises:
        ImageError: another filter.
    """
    if resample not in KERNELS:
        names = (f"{number} ({Resampling(number).name.lower()})" for number in sorted(KERNELS))
        known = ", ".join(names)
        raise ImageError(f"expected videos resized with a filter of {known}, found {resample}")
    return _resize_axis(_resize_axis(pixels, -2, width, resample), -3, height, resample)


def _resize_axis(
    pixels: NDArray[np.uint8], axis: int, size: int, resample: int
) -> NDArray[np.uint8]:
    before = pixels.shape[axis]
    if before == size:
        return pixels
    places, weights, bits = _taps(before, size, *KERNELS[resample])
    shape = [1] * pixels.ndim
    shape[axis] = size
    total = np.full((1,) * pixels.ndim, 1 << (bits - 1), np.int32)  # a half, for rounding
    for place, weight in zip(places.T, weights.T, strict=True):
        total = total + pixels.take(place, axis) * weight.reshape(shape)
    resized: NDArray[np.uint8] = np.clip(total >> bits, 0, 255).astype(np.uint8)
    return resized


def _taps(
    before: int, after: int, kernel: Kernel, reach: float
) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """Pixels read for each new one [after, taps], their weights, and the bits behind the point."""
    places, weights = _weights(before, after, kernel, reach)
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << BITS:
        bits += 1
    scaled = weights * (1 << bits)
    rounded = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)
    return np.minimum(places, before - 1), rounded, bits


def shares_along(before: int, after: int) -> NDArray[np.float64]:
    """[after, before]: how much of each old number a new one is, linearly and antialiased.

    As `torch.nn.functional.interpolate(antialias=True)` of floats along one axis.
    """
    places, weights = _weights(before, after, *KERNELS[BILINEAR])
    shares = np.zeros((after, before + places.shape[1]))
    np.put_along_axis(shares, places, weights, 1)
    return shares[:, :before]


def _weights(
    before: int, after: int, kernel: Kernel, reach: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Old places read for each new one, some beyond the last, and their weights; [after, taps]."""
    scale = before / after
    stretch = max(scale, 1.0)
    centre = scale * (np.arange(after) + 0.5)
    first = np.maximum((centre - reach * stretch + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + reach * stretch + 0.5).astype(np.int64), before)
    places = first[:, None] + np.arange((end - first).max())
    distance = np.abs((places - centre[:, None] + 0.5) * (1.0 / stretch))
    weights = np.where(places < end[:, None], kernel(distance), 0.0)
    return places, weights / weights.sum(1, keepdims=True)


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - x, 0.0)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel (1981) with a = -0.5, at distances `x` >= 0."""
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """A sinc under the middle of another, three times as wide."""
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


# Filters and how many source pixels they read on each side where nothing shrinks.
KERNELS: Mapping[int, tuple[Kernel, float]] = {
    BILINEAR: (_triangle, 1.0),
    BICUBIC: (_cubic, 2.0),
    LANCZOS: (_lanczos, 3.0),
}

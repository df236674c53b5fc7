"""Pictures of more than 8 bits a sample in one channel (Pillow's modes I;16, I and F).

Pillow and transformers cut every sample off at 255, which leaves such pictures white, or black
where they hold numbers from 0 to 1. Here they are scaled to 8 bits:

- 16 bits (I;16 in any byte order, and what else Pillow reads from PNG, PGM and JPEG 2000 files):
  0 to 65535 becomes black to white.
- Whole numbers of 32 bits (I) and floating-point numbers (F): the range is that of their values.
  0 to 1 in floats, and 0 to 65535 in whole numbers, become black to white. 0 to 255 in whole
  numbers stays as it is. All others go from their smallest to their largest. NaN and infinity are
  black.
- Of a picture in memory that came from no file, 0 to 255 stays as it is in every mode, fractions
  cut off as Pillow does: it holds 8 bits that were converted to a wider mode.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MODES: Final = ("I", "F")
EIGHT: Final = 255.0
SIXTEEN: Final = 65535.0
SIXTEEN_BITS: Final = ("PNG", "PPM", "JPEG2000")  # formats that hold nothing wider in mode I
INVERTED: Final = 262  # TIFF's PhotometricInterpretation: 0 where white is the lowest number
SAMPLE_FORMAT: Final = 339  # TIFF's: 1 for numbers without a sign
ROWS: Final = 64  # that are scaled at a time, in 8 bytes a sample
_told: set[str] = set()


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has samples of more than 8 bits, which `eight_bits` brings down."""
    return image.mode in MODES or image.mode.startswith("I;16")


def eight_bits(image: Image.Image, name: str) -> Image.Image:
    """The picture in mode L, or LA where one of its values stands for transparency.

    How values were scaled is said on stderr, once in a process for each way.
    """
    values = _values(image)
    low, high, how = _range(values, image)
    if how:
        _tell(name, how)
    grey = np.zeros(values.shape, np.uint8)
    for row in range(0, len(values), ROWS):
        part = values[row : row + ROWS].astype(np.float64)
        part[~np.isfinite(part)] = low
        if high > low:
            part = (part - low) * (EIGHT / (high - low))
            grey[row : row + ROWS] = (np.rint(part) if how else part).clip(0, 255)
    if _tiff(image, INVERTED, 1) == 0:
        grey = 255 - grey
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return Image.fromarray(grey)
    opaque = np.where(values == clear, np.uint8(0), np.uint8(255))
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(opaque)))


def _values(image: Image.Image) -> NDArray[Any]:
    values = np.asarray(image)
    if values.dtype == np.int32 and _tiff(image, SAMPLE_FORMAT, 0) == 1:
        return values.view(np.uint32)  # which Pillow has no mode for
    return values


def _range(values: NDArray[Any], image: Image.Image) -> tuple[float, float, str]:
    """What becomes black and white, and how people call it; nothing to say of 8 bits."""
    sixteen = (0.0, SIXTEEN, "16 bits a sample, 0 to 65535,")
    floats, stored = image.mode == "F", image.format is not None
    if (image.mode.startswith("I;16") and stored) or (image.format in SIXTEEN_BITS and not floats):
        return sixteen
    finite = values[np.isfinite(values)] if floats else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if floats and low >= 0 and high <= 1:
        return 0.0, 1.0, "floating-point samples, 0 to 1,"
    whole = not floats or bool((finite == np.rint(finite)).all())
    if low >= 0 and high <= EIGHT and (whole or not stored):
        return 0.0, EIGHT, ""
    if low >= 0 and high <= SIXTEEN and whole:
        return sixteen
    kind = "floating-point samples" if floats else "32 bits a sample"
    return low, high, f"{kind}, here {low:g} to {high:g},"


def _tiff(image: Image.Image, tag: int, otherwise: int) -> Any:
    value = getattr(image, "tag_v2", {}).get(tag, otherwise)
    return value[0] if isinstance(value, tuple) and value else value


def _tell(name: str, how: str) -> None:
    kind = how.partition(",")[0]
    if kind not in _told:
        _told.add(kind)
        print(
            f"avl: {name}: {how} scaled to 8 bits (said once for all such pictures)",
            file=sys.stderr,
        )

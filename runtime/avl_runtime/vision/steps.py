"""Pictures to pixel values, step by step as Hugging Face's image processors (PIL backend) do it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.errors import FormatError
from avl_runtime.vision.load.images import check_size
from avl_runtime.vision.media import WHOLE, Box

MAX_SIDE = 1 << 14  # pixels
MAX_NUMBER = 1e30  # beyond it float32 arithmetic overflows
FILTERS = frozenset(Image.Resampling)


@dataclass(frozen=True, slots=True)
class ImageProcessing:
    """Hugging Face image-processor steps, in their order: resize, crop, rescale, normalize.

    `resize` is the length in pixels of the shorter edge, or [height, width]; None skips a step.
    `resample` is Pillow's filter number.

    Raises:
        FormatError: a number that no picture can be processed with.
    """

    convert_rgb: bool
    resize: int | tuple[int, int] | None
    resample: int
    crop: tuple[int, int] | None
    rescale: float | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None

    def __post_init__(self) -> None:
        sides = [*self._sides(self.resize), *self._sides(self.crop)]
        numbers = [self.rescale or 0.0, *(self.mean or ()), *(self.std or ())]
        wrong = (
            next((f"a side of {side} pixels" for side in sides if not 0 < side <= MAX_SIDE), None)
            or next((f"the number {n}" for n in numbers if not abs(n) < MAX_NUMBER), None)
            or (f"the filter {self.resample}" if self.resample not in FILTERS else None)
            or ("a deviation of 0" if 0 in (self.std or ()) else None)
        )
        if wrong is not None:
            raise FormatError(f"image processing: expected steps a picture can take, found {wrong}")

    @staticmethod
    def _sides(size: int | tuple[int, int] | None) -> tuple[int, ...]:
        return (size,) if isinstance(size, int) else size or ()


def fit(image: Image.Image, steps: ImageProcessing) -> NDArray[np.uint8]:
    """Resize and crop an RGB picture: what the model sees of it, [H, W, 3].

    Raises:
        ImageError: the picture is so long and narrow that resizing it would take too many pixels.
    """
    if steps.resize is not None:
        height, width = target_size(image.size, steps.resize)
        check_size((width, height), f"image of {image.width} x {image.height}, resized")
        image = image.resize((width, height), Image.Resampling(steps.resample))
    pixels = np.asarray(image, np.uint8)
    return pixels if steps.crop is None else _center_crop(pixels, *steps.crop)


def part_fitted(size: tuple[int, int], steps: ImageProcessing) -> Box:
    """The part of a picture of `size` (width, height) that `fit` leaves."""
    if steps.crop is None:
        return WHOLE
    height, width = size[1], size[0]
    if steps.resize is not None:
        height, width = target_size(size, steps.resize)
    # Rounded as `_center_crop` does, also where the picture is smaller and gets bars.
    top, left = (height - steps.crop[0]) // 2, (width - steps.crop[1]) // 2
    right, bottom = left + steps.crop[1], top + steps.crop[0]
    return left / width, top / height, right / width, bottom / height


def pixel_values(fitted: NDArray[np.uint8], steps: ImageProcessing) -> NDArray[np.float32]:
    """Rescale and normalize [H, W, 3] to the vision graph's [3, H, W]."""
    # What becomes of a byte depends on its channel alone: looking it up is ten times faster.
    table = _normalized(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1), steps)
    planes = np.empty((3, *fitted.shape[:2]), np.float32)
    for channel, plane in enumerate(planes):
        # No byte lies outside the table; "clip" spares NumPy a copy in case one does.
        np.take(table[:, channel], fitted[:, :, channel], out=plane, mode="clip")
    return planes


def _normalized(values: NDArray[np.uint8], steps: ImageProcessing) -> NDArray[np.float32]:
    """Values [..., 3] of three channels."""
    found: NDArray[np.float32] = values.astype(np.float32)
    if steps.rescale is not None:
        # Hugging Face multiplies in double precision and rounds once.
        found = (values.astype(np.float64) * steps.rescale).astype(np.float32)
    if steps.mean is not None and steps.std is not None:
        mean, std = np.array(steps.mean, np.float32), np.array(steps.std, np.float32)
        found = np.divide(found - mean, std, dtype=np.float32)
    return found


def target_size(size: tuple[int, int], resize: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of `size` (width, height) resized; an int is the shorter edge's length."""
    if not isinstance(resize, int):
        return resize
    short, long = sorted(size)
    longer = int(resize * long / short)
    return (longer, resize) if size[0] <= size[1] else (resize, longer)


def _center_crop(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle [height, width, 3]; what a smaller picture lacks is black."""
    found_height, found_width = pixels.shape[:2]
    if found_height < height or found_width < width:
        canvas = np.zeros((max(height, found_height), max(width, found_width), 3), np.uint8)
        top = math.ceil((canvas.shape[0] - found_height) / 2)
        left = math.ceil((canvas.shape[1] - found_width) / 2)
        canvas[top : top + found_height, left : left + found_width] = pixels
        # Rounding down both times puts the crop where Hugging Face's does for odd differences.
        top += (found_height - height) // 2
        left += (found_width - width) // 2
        top, left = max(0, top), max(0, left)
        return canvas[top : top + height, left : left + width]
    top, left = (found_height - height) // 2, (found_width - width) // 2
    return pixels[top : top + height, left : left + width]

"""Frames of videos to pixel values, step by step as Hugging Face's video processors do it.

They work on torch tensors and differ from its image processors (`steps`) in rounding: in resizing,
and in normalizing, which they do in one step with rescaling.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_runtime.vision.load.images import check_size
from avl_runtime.vision.resample import resize
from avl_runtime.vision.steps import ImageProcessing, target_size


def fit_frame(frame: Image.Image, steps: ImageProcessing) -> NDArray[np.uint8]:
    """Resize and crop an RGB frame: what the model sees of it, [H, W, 3].

    Raises:
        ImageError: the frame is so long and narrow that resizing it would take too many pixels.
    """
    pixels = np.asarray(frame, np.uint8)
    if steps.resize is not None:
        height, width = target_size(frame.size, steps.resize)
        check_size((width, height), f"frame of {frame.width} x {frame.height}, resized")
        pixels = resize(pixels, height, width, steps.resample)
    return pixels if steps.crop is None else _center_crop(pixels, *steps.crop)


def frame_values(fitted: NDArray[np.uint8], steps: ImageProcessing) -> NDArray[np.float32]:
    """Rescale and normalize [H, W, 3] to the encoder's [3, H, W]."""
    values = fitted.astype(np.float32)
    if steps.mean is not None and steps.std is not None:
        unit = np.float32(1.0 if steps.rescale is None else 1.0 / steps.rescale)
        values = (values - np.array(steps.mean, np.float32) * unit) / (
            np.array(steps.std, np.float32) * unit
        )
    elif steps.rescale is not None:
        values = values * np.float32(steps.rescale)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def spread(count: int, frames: int) -> list[int]:
    """At most `frames` of `count` frames, evenly from the first one on.

    As Hugging Face's video processors sample them unless they say otherwise.
    """
    return list(range(count)) if count <= frames else [i * count // frames for i in range(frames)]


def middles(count: int, frames: int) -> list[int]:
    """At most `frames` of `count` frames: the middle ones of equal parts of a video (InternVL)."""
    if count <= frames:
        return list(range(count))
    part = count / frames
    return [int(np.float32(part / 2 + i * part)) for i in range(frames)]


def _center_crop(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle [height, width, 3]; what a smaller frame lacks is black."""
    down, across = max(0, height - pixels.shape[0]), max(0, width - pixels.shape[1])
    if down or across:
        sides = ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
        pixels = np.pad(pixels, sides)
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]

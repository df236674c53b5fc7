"""A stand-in for transformers' video processors, which need torchvision.

It is put together from torch's own functions, which are all that torchvision calls for videos:
`resize` is `interpolate` on uint8, `normalize` subtracts and divides. Compared once with
VideoLlavaVideoProcessor and InternVLVideoProcessor (transformers 5.23, torchvision 0.28): the same
to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MODES = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers


@dataclass(frozen=True, slots=True)
class TorchVideos:
    """Resize, crop, and rescale and normalize in one step.

    `size` is the shorter edge or (height, width). Frames are taken as they come, as both classes
    do unless they are told to sample.
    """

    size: int | tuple[int, int]
    crop: tuple[int, int] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int = 3
    valid_kwargs: Any = None
    model_input_names: tuple[str, ...] = ("pixel_values_videos",)

    def __call__(self, videos: Sequence[Sequence[Image.Image]], **_: Any) -> dict[str, Any]:
        values = [self.values(video) for video in videos]
        same = len({tuple(one.shape) for one in values}) == 1
        return {"pixel_values_videos": torch.stack(values) if same else values}

    def values(self, frames: Sequence[Image.Image]) -> Tensor:
        """[frames, 3, H, W]."""
        pixels = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames]))
        pixels = pixels.permute(0, 3, 1, 2)
        height, width = pixels.shape[2:]
        if isinstance(self.size, int):
            short, long = sorted((height, width))
            long = int(self.size * long / short)
            size = (self.size, long) if height <= width else (long, self.size)
        else:
            size = self.size
        if size != (height, width):
            pixels = torch.nn.functional.interpolate(
                pixels, size, mode=MODES[self.resample], antialias=True, align_corners=False
            )
        if self.crop is not None:
            top, left = ((n - m) // 2 for n, m in zip(pixels.shape[2:], self.crop, strict=True))
            pixels = pixels[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        scale = 1.0 / (1 / 255)
        mean = (torch.tensor(self.mean) * scale)[:, None, None]
        std = (torch.tensor(self.std) * scale)[:, None, None]
        return (pixels.float() - mean) / std

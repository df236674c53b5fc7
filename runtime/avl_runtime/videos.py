"""Videos from files, lists of pictures and arrays, with limits that hostile ones run into.

Frames are loaded when they are picked; of a file, only those that are needed are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_runtime.images import ImageLike, load_image
from avl_runtime.video_files import FileFrames, VideoError, open_file

__all__ = ["Video", "VideoError", "VideoLike", "load_video"]

MAX_PICKED: Final = 1 << 30  # pixels of all the frames that are picked together; RGB takes 3 bytes


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """Frames in order, each as `load_image` takes it, or those of a file.

    `fps` is the number of frames a second, None where nobody knows (a list of pictures).
    """

    frames: Sequence[ImageLike] | FileFrames
    fps: float | None

    @property
    def count(self) -> int:
        """How many frames there are."""
        return len(self.frames)

    def pick(self, indices: Sequence[int]) -> list[Image.Image]:
        """The frames at `indices`, each from 0 to `count` - 1, in that order; RGB, upright.

        Raises:
            VideoError: a file is damaged or has gone, or the frames together are too large.
            ImageError: a picture of a list cannot be loaded.
        """
        wanted = sorted(set(indices))
        if isinstance(self.frames, FileFrames):
            _check_picked(len(wanted) * self.frames.size[0] * self.frames.size[1])
            return self.frames.pick(indices)
        loaded: dict[int, Image.Image] = {}
        pixels = 0
        for index in wanted:
            loaded[index] = load_image(self.frames[index])
            pixels += loaded[index].width * loaded[index].height
            _check_picked(pixels)
        return [loaded[index] for index in indices]


VideoLike = str | Path | Video | Sequence[ImageLike] | NDArray[np.uint8]


def load_video(source: VideoLike) -> Video:
    """Open a video.

    Args:
        source: the path of a file, its frames as a list, each as `load_image` takes them, or an
            array [frames, height, width, 3] of uint8. A `Video` is taken as it is.

    Raises:
        VideoError: there are no frames, or a file cannot be read as a video within the limits.
    """
    if isinstance(source, Video):
        return source
    if isinstance(source, (str, Path)):
        frames, fps = open_file(source)
        return Video(frames, fps)
    if isinstance(source, np.ndarray):
        return Video(_from_array(source), None)
    if isinstance(source, (bytes, bytearray)) or not isinstance(source, Sequence):
        raise VideoError(
            "expected a video as path, list of pictures or uint8 array, "
            f"found {type(source).__name__}"
        )
    if not source:
        raise VideoError("expected a video of at least one frame, found none")
    return Video(tuple(source), None)


def _check_picked(pixels: int) -> None:
    if pixels > MAX_PICKED:
        raise VideoError(
            f"expected at most {MAX_PICKED // 1_000_000} megapixels in all the frames of a video "
            f"that are read, found {pixels / 1e6:.0f}; scale the video down first"
        )


def _from_array(array: NDArray[Any]) -> tuple[NDArray[np.uint8], ...]:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not len(array):
        raise VideoError(
            "expected a video array [frames, height, width, 3] of uint8, "
            f"found {list(array.shape)} of {array.dtype}"
        )
    return tuple(array)

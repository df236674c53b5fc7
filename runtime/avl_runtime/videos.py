"""Videos from files, lists of pictures and arrays, with limits that hostile ones run into.

Frames of a file are decoded when they are picked, and only those that are needed to get at them.
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
    """Frames in order, RGB, upright.

    `fps` is the number of frames a second, None where nobody knows (a list of pictures).
    """

    frames: Sequence[Image.Image] | FileFrames
    fps: float | None

    @property
    def count(self) -> int:
        """How many frames there are."""
        return len(self.frames)

    def pick(self, indices: Sequence[int]) -> list[Image.Image]:
        """The frames at `indices`, each from 0 to `count` - 1, in that order.

        Raises:
            VideoError: a file is damaged or has been removed, or the frames together are too large.
        """
        if not isinstance(self.frames, FileFrames):
            return [self.frames[index] for index in indices]
        width, height = self.frames.size
        if width * height * len(set(indices)) > MAX_PICKED:
            raise VideoError(
                f"{self.frames.path}: expected at most {MAX_PICKED // 1_000_000} megapixels in "
                f"all frames read, found {len(set(indices))} frames of {width} x {height}; scale "
                "the video down first"
            )
        return self.frames.pick(indices)


VideoLike = str | Path | Video | Sequence[ImageLike] | NDArray[np.uint8]


def load_video(source: VideoLike) -> Video:
    """Open a video.

    Args:
        source: the path of a file, its frames as a list, each as `load_image` takes them, or an
            array [frames, height, width, 3] of uint8. A `Video` is taken as it is.

    Raises:
        ImageError: a frame of a list cannot be read.
        VideoError: there are no frames, or a file cannot be read as a video within the limits.
    """
    if isinstance(source, Video):
        return source
    if isinstance(source, (str, Path)):
        frames, fps = open_file(source)
        return Video(frames, fps)
    if isinstance(source, np.ndarray):
        return Video(_from_array(source), None)
    if isinstance(source, (bytes, Image.Image)) or not isinstance(source, Sequence):
        raise VideoError(
            "expected a video as path, list of pictures or uint8 array, "
            f"found {type(source).__name__}"
        )
    pictures = tuple(load_image(frame) for frame in source)
    if not pictures:
        raise VideoError("expected a video of at least one frame, found none")
    return Video(pictures, None)


def _from_array(array: NDArray[Any]) -> tuple[Image.Image, ...]:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not len(array):
        raise VideoError(
            "expected a video array [frames, height, width, 3] of uint8, "
            f"found {list(array.shape)} of {array.dtype}"
        )
    return tuple(load_image(frame) for frame in array)

"""Videos from files, lists of pictures and arrays, with limits that hostile ones run into.

Frames are loaded when they are picked; of a file, only those that are needed are decoded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.errors import shown
from avl_runtime.vision.load.animations import AnimationFrames
from avl_runtime.vision.load.images import ImageLike, load_image
from avl_runtime.vision.load.video_files import FileFrames, open_file
from avl_runtime.vision.load.video_source import VideoError, VideoFileLike, is_open

__all__ = ["Video", "VideoError", "VideoLike", "load_video"]

MAX_PICKED: Final = 1 << 30  # pixels of all the frames that are picked together; RGB takes 3 bytes


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """Frames in order, each as `load_image` takes it, or those of a file.

    Attributes:
        fps: frames a second, the mean of a varying rate; None where nobody knows (a list of
            pictures).
        seconds: when each frame is shown, from the first one on, where the rate varies; None where
            it is constant, or nobody knows.
    """

    frames: Sequence[ImageLike] | FileFrames | AnimationFrames
    fps: float | None
    seconds: Sequence[float] | None = None

    @property
    def count(self) -> int:
        """How many frames there are."""
        return len(self.frames)

    def second(self, index: int, unknown_fps: float) -> float:
        """When a frame is shown; `unknown_fps` is the rate where nobody knows it."""
        if self.seconds is not None:
            return self.seconds[index]
        return index / (self.fps or unknown_fps)

    def places(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where each of `seconds` lies among the frames: 2.5 is halfway from frame 2 to frame 3.

        Of a video with frames at varying times.
        """
        if self.seconds is None:
            raise ValueError("expected a video with the times of its frames, found none")
        places = np.interp(seconds, self.seconds, np.arange(self.count, dtype=np.float64))
        return places + 1e-9  # so that what lies on a frame is not rounded below it

    def pick(self, indices: Sequence[int]) -> list[Image.Image]:
        """The frames at `indices`, each from 0 to `count` - 1, in that order; RGB, upright.

        Raises:
            VideoError: a file is damaged or has gone, or the frames together are too large.
            ImageError: a picture of a list cannot be loaded.
        """
        wanted = sorted(set(indices))
        if isinstance(self.frames, (FileFrames, AnimationFrames)):
            _check_picked(len(wanted) * self.frames.size[0] * self.frames.size[1])
            return self.frames.pick(indices)
        loaded: dict[int, Image.Image] = {}
        pixels = 0
        for index in wanted:
            loaded[index] = load_image(self.frames[index])
            pixels += loaded[index].width * loaded[index].height
            _check_picked(pixels)
        return [loaded[index] for index in indices]


VideoLike = VideoFileLike | Video | Sequence[ImageLike] | NDArray[np.uint8]


def load_video(source: VideoLike) -> Video:
    """Open a video.

    Args:
        source: the path of a file (also with `~`, or as a file: address), a `data:` address, the
            bytes of a file or a file open in binary mode; its frames as a list, each as
            `load_image` takes them, or an array of uint8, [frames, height, width, C] with 1, 3 or
            4 channels. A `Video` is taken as it is.

    Raises:
        VideoError: there are no frames, or a file cannot be read as a video within the limits.
    """
    if isinstance(source, Video):
        return source
    if isinstance(source, np.ndarray):
        return Video(_from_array(source), None)
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or is_open(source):
        frames, times = open_file(source)
        return Video(frames, times.fps, times.seconds)
    if not isinstance(source, Sequence):
        raise VideoError(
            "expected a video as path, bytes, open file, list of pictures or uint8 array, "
            f"found {type(source).__name__}"
        )
    if not source:
        raise VideoError("expected a video of at least one frame, found none")
    pictures: Sequence[Any] = source
    return Video(tuple(pictures), None)


def _check_picked(pixels: int) -> None:
    if pixels > MAX_PICKED:
        raise VideoError(
            f"expected at most {MAX_PICKED // 1_000_000} megapixels in all the frames of a video "
            f"that are read, found {pixels / 1e6:.0f}; scale the video down first"
        )


def _from_array(array: NDArray[Any]) -> tuple[NDArray[np.uint8], ...]:
    fits = array.ndim == 4 and array.shape[3] in (1, 3, 4) and len(array) > 0
    if array.dtype != np.uint8 or not fits:
        raise VideoError(
            "expected a video array [frames, height, width, 1, 3 or 4] of uint8, "
            f"found {shown(list(array.shape))} of {shown(array.dtype)}"
        )
    return tuple(array)

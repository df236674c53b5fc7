"""Videos cut into patches, with the times of their frames (Qwen-VLs, GLM-4V)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.graph_io import PIXELS
from avl_runtime.vision.frame_choice import RATES, paced, stepped
from avl_runtime.vision.frame_steps import frame_values
from avl_runtime.vision.load.images import check_size
from avl_runtime.vision.load.videos import Video, VideoError
from avl_runtime.vision.media import IMAGES_PER_RUN, Media, image_hash
from avl_runtime.vision.patches import (
    MAX_PATCHES,
    Patches,
    check_ratio,
    grown_size,
    smart_size,
)
from avl_runtime.vision.resample import resize
from avl_runtime.vision.steps import ImageProcessing

UNKNOWN_FPS: Final = 24.0  # what transformers takes where nobody says
PATCHES_PER_RUN: Final = 1 << 14  # of several frames; a single one may have as many
MAX_VIDEO_PATCHES: Final = 1 << 18  # their pixel values take about 1.5 GB
Choice = Literal["spread", "stepped", "paced"]
Stamp = Literal["before", "seconds", "tenths"]


@dataclass(frozen=True, slots=True)
class PatchVideo:
    """Graph: `Patches.inputs` of the frames -> features [T, cells, C]; times are positions.

    `fps` frames a second are taken, `min_frames` to `max_frames` in all; of a list of frames, all.
    A frame is resized to `min_pixels` to `max_pixels`. A second is `tokens_per_second` positions;
    None counts the groups of frames, whatever their times (Qwen2-VL).
    """

    kind: Literal["patch_video"]
    processing: ImageProcessing
    patches: Patches
    min_pixels: int
    max_pixels: int
    fps: float
    min_frames: int
    max_frames: int
    tokens_per_second: int | None

    def prepare(self, video: Video, token: str) -> Media:
        """Make a video ready; `token` is the text of a video token.

        Raises:
            VideoError: its frames differ in size, or there are too many.
            ImageError: its frames are too long and narrow.
        """
        indices, frames = self._picked(video)
        height, width = self._size(frames)
        inputs, per_run = _inputs(frames, (height, width), self)
        groups = len(inputs[PIXELS])
        times = self._times(groups, len(indices), video)
        cells = self.patches.cells_of(height, width, groups)
        tokens = len(cells.index)
        return Media(
            kind="video",
            inputs=inputs,
            replacement=token * tokens,
            tokens=tokens,
            digest=_digest(frames),
            cells=cells,
            blocks=(self.patches.block(height, width, times),),
            images_per_run=per_run,
        )

    def view(self, video: Video) -> Image.Image:
        """The middle one of the frames that are taken, as the model sees it."""
        _, frames = self._picked(video)
        return _middle(frames, self._size(frames), self.processing.resample)

    def _picked(self, video: Video) -> tuple[list[int], list[Image.Image]]:
        indices = list(range(video.count))
        if video.fps is not None and video.count >= self.patches.temporal:
            indices = self._sample(video, video.fps)
        return indices, video.pick(indices)

    def _times(self, groups: int, taken: int, video: Video) -> NDArray[np.int64]:
        """Positions in time of the groups of frames, of which `taken` are."""
        if self.tokens_per_second is None:
            return np.arange(groups)
        rate = UNKNOWN_FPS if video.fps is None else taken / video.count * video.fps
        # fp32, as transformers multiplies.
        step = np.float32(self.tokens_per_second) * np.float32(self.patches.temporal / rate)
        return (np.arange(groups).astype(np.float32) * step).astype(np.int64)

    def _sample(self, video: Video, fps: float) -> list[int]:
        """As transformers' Qwen2VLVideoProcessor does for `do_sample_frames=True, fps=self.fps`.

        Its positions are evenly apart in time, so where the rate varies the frames are those that
        are on screen at such times.
        """
        group, total = self.patches.temporal, video.count
        most = min(self.max_frames, total) // group * group
        wanted = min(max(total / fps * self.fps, self.min_frames), most, total)
        count = max(math.floor(wanted / group), 1) * group
        if video.seconds is not None:
            times = np.arange(count, dtype=np.float64) * (total / fps / count)
            return [int(place) for place in video.places(times)]
        return [int(i) for i in (np.arange(count) * (total / count)).astype(np.float32)]

    def _size(self, frames: Sequence[Image.Image]) -> tuple[int, int]:
        width, height = common_size(frames)
        check_ratio(height, width, f"frame of {width} x {height}")
        return smart_size(height, width, self.patches.cell, self.min_pixels, self.max_pixels)


@dataclass(frozen=True, slots=True)
class TimedVideo:
    """Graph: `Patches.inputs` of the frames -> features [T, cells, C]; times are in the text.

    `fps` frames a second are taken, spread evenly, `min_frames` to `max_frames` in all; None takes
    all. All frames together are resized to `min_pixels` to `max_pixels`. Each group of frames
    stands between `opening` and `closing`.

    Attributes:
        choice: of frames, if not "spread": see `frame_choice`. All of a list are taken then.
        longest: of a "stepped" video, in seconds.
        stamp: a group's time. "before" it is that of its middle; behind it that of its first frame,
            in whole "seconds" or in "tenths".
    """

    kind: Literal["timed_video"]
    processing: ImageProcessing
    patches: Patches
    min_pixels: int
    max_pixels: int
    fps: float | None
    min_frames: int
    max_frames: int
    opening: str
    closing: str
    choice: Choice = "spread"
    longest: float = 300.0
    stamp: Stamp = "before"

    def prepare(self, video: Video, token: str) -> Media:
        """Make a video ready; `token` is the text of a video token.

        Raises:
            VideoError: it has a single frame, its frames differ in size, or there are too many.
            ImageError: its frames are too long and narrow.
        """
        indices, frames = self._picked(video)
        height, width = self._size(frames)
        inputs, per_run = _inputs(frames, (height, width), self)
        groups = len(inputs[PIXELS])
        cells = self.patches.cells_of(height, width, groups)
        tokens = len(cells.index)
        seen = self.opening + token * (tokens // groups) + self.closing
        times = self._times(indices, video)
        block = self.patches.block(height, width, np.zeros(1, np.int64))
        return Media(
            kind="video",
            inputs=inputs,
            replacement="".join(self._stamped(time, seen) for time in times),
            tokens=tokens,
            digest=_digest(frames),
            cells=cells,
            blocks=(block,) * groups,
            images_per_run=per_run,
        )

    def view(self, video: Video) -> Image.Image:
        """The middle one of the frames that are taken, as the model sees it."""
        _, frames = self._picked(video)
        return _middle(frames, self._size(frames), self.processing.resample)

    def _picked(self, video: Video) -> tuple[list[int], list[Image.Image]]:
        if video.count < self.patches.temporal:
            raise VideoError(
                f"expected a video of at least {self.patches.temporal} frames, found "
                f"{video.count}; send it as an image"
            )
        indices = list(range(video.count))
        if self.fps is not None and self.choice != "spread":
            if video.fps is not None and self.choice == "stepped":
                indices = stepped(video, video.fps, self.fps, self.longest)
            elif video.fps is not None:
                indices = paced(video, video.fps, self.patches.temporal)
            if not indices:
                raise VideoError(
                    f"expected a video of at least {1 / RATES[0][1] / self.patches.temporal:.2f} "
                    f"seconds, found {video.count / (video.fps or UNKNOWN_FPS):.2f}; send its "
                    "frames as images"
                )
        elif self.fps is not None:
            wanted = int(video.count / (video.fps or UNKNOWN_FPS) * self.fps)
            count = min(max(wanted, self.min_frames), self.max_frames, video.count)
            places = np.linspace(0, video.count - 1, count)
            if video.seconds is not None:  # those nearest to times that are evenly apart
                places = video.places(np.linspace(0, video.seconds[-1], count))
            indices = [int(i) for i in places.round()]
        return indices, video.pick(indices)

    def _stamped(self, time: float, seen: str) -> str:
        if self.stamp == "before":
            return f"<{time:.1f} seconds>{seen}"
        return f"{seen}{int(time)}" if self.stamp == "seconds" else f"{seen}{time:.1f} seconds"

    def _times(self, indices: Sequence[int], video: Video) -> list[float]:
        """Seconds of each group of frames, see `stamp`."""
        group = self.patches.temporal
        padded = [*indices, *[indices[-1]] * (-len(indices) % group)]
        seconds = [video.second(index, UNKNOWN_FPS) for index in padded]
        if self.stamp != "before":
            return seconds[::group]
        ends = zip(seconds[::group], seconds[group - 1 :: group], strict=True)
        return [(first + last) / 2 for first, last in ends]

    def _size(self, frames: Sequence[Image.Image]) -> tuple[int, int]:
        width, height = common_size(frames)
        limits, name = (self.min_pixels, self.max_pixels), f"frame of {width} x {height}"
        return grown_size(self.patches, len(frames), (height, width), limits, name)


def _inputs(
    frames: Sequence[Image.Image], size: tuple[int, int], layout: PatchVideo | TimedVideo
) -> tuple[dict[str, NDArray[Any]], int]:
    """The graph's inputs, and how many of their groups of frames one run takes."""
    height, width = size
    cut = layout.patches
    groups, patches = -(-len(frames) // cut.temporal), cut.patches_of(height, width)
    check_size((width, height), "frame, resized")
    if patches > MAX_PATCHES or groups * patches > MAX_VIDEO_PATCHES:
        raise VideoError(
            f"expected a video of at most {MAX_VIDEO_PATCHES} patches, {MAX_PATCHES} a frame, "
            f"found {groups * patches} in {len(frames)} frames of {width} x {height} as the model "
            "sees them; shorten the video or scale it down"
        )
    steps = layout.processing
    pixels = [resize(np.asarray(frame), height, width, steps.resample) for frame in frames]
    values = np.stack([frame_values(frame, steps) for frame in pixels])
    if missing := -len(frames) % cut.temporal:
        values = np.concatenate([values, values[-1:].repeat(missing, 0)])
    return cut.inputs(values), min(IMAGES_PER_RUN, max(1, PATCHES_PER_RUN // patches))


def common_size(frames: Sequence[Image.Image]) -> tuple[int, int]:
    """(width, height) of all frames."""
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        found = ", ".join(f"{width} x {height}" for width, height in sorted(sizes)[:3])
        raise VideoError(f"expected frames of one size, found {found}; resize them to one")
    return sizes.pop()


def _middle(frames: Sequence[Image.Image], size: tuple[int, int], resample: int) -> Image.Image:
    return Image.fromarray(resize(np.asarray(frames[len(frames) // 2]), *size, resample))


def _digest(frames: Sequence[Image.Image]) -> str:
    hashes = "".join(image_hash(frame) for frame in frames)
    return hashlib.sha256(hashes.encode()).hexdigest()

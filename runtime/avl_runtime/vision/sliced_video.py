"""Videos as frames that are cut like pictures, large ones into the whole and slices (MiniCPM-V)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from PIL import Image

from avl_plugins.errors import FormatError
from avl_runtime.vision.frame_steps import frame_values
from avl_runtime.vision.frames import frames_hash
from avl_runtime.vision.load.images import check_size
from avl_runtime.vision.load.videos import Video, VideoError
from avl_runtime.vision.media import Media
from avl_runtime.vision.patch_video import common_size
from avl_runtime.vision.resample import resize
from avl_runtime.vision.slices import Pixels, SlicedImage, blocks_of

MAX_VIDEO_PATCHES: Final = 1 << 20  # their pixel values take about 2.5 GB
LONG: Final = 0.1  # seconds between the frames that those of a long video are chosen from


@dataclass(frozen=True, slots=True)
class SlicedVideo:
    """Graph: as `SlicedImage`'s, for frames of one size.

    Of a video whose rate is known, a frame a second is taken; of a longer one than `frames`
    seconds that many, evenly apart. Of a list of frames, all.

    Attributes:
        frame: how a frame is cut and what stands for it, as for a picture. It is resized and
            normalized as transformers' video processors do.

    Raises:
        FormatError: no frame would be taken.
    """

    kind: Literal["sliced_video"]
    frame: SlicedImage
    frames: int

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise FormatError(f"video layout: expected 1 frame at least, found {self.frames}")

    def prepare(self, video: Video, token: str) -> Media:
        """Make a video ready; `token` is the text of a video token.

        Raises:
            VideoError: a file is damaged, its frames differ in size, or they are too many.
            ImageError: a frame takes too many pixels or patches.
        """
        frame, picked = self.frame, video.pick(self._taken(video))
        common_size(picked)
        patches = sum(math.prod(sides) for sides in frame.sides(picked[0])) // frame.size**2
        if patches * len(picked) > MAX_VIDEO_PATCHES:
            raise VideoError(
                f"expected a video of at most {MAX_VIDEO_PATCHES} patches, found "
                f"{patches * len(picked)} in {len(picked)} frames of {picked[0].width} x "
                f"{picked[0].height} as the model sees them; shorten the video or scale it down"
            )
        cut = [frame.cut(one, self._resized) for one in picked]
        if not frame.grid(picked[0])[0]:
            cut = [[np.concatenate([whole for (whole,) in cut])]]
        first, *more = (
            frame.inputs(np.stack([frame_values(one, frame.processing) for one in parts]))
            for shown in cut
            for parts in shown
        )
        cells, counts = frame.cells(picked[0])
        text = frame.text(token, counts, frame.grid(picked[0])[1])
        return Media(
            kind="video",
            inputs=first,
            replacement=text * len(picked),
            tokens=sum(counts) * len(picked),
            digest=frames_hash(picked),
            cells=replace(cells, index=np.tile(cells.index, len(picked))),
            blocks=blocks_of(counts) * len(picked),
            more=tuple(more),
            numbers=frame.numbers,
        )

    def view(self, video: Video) -> Image.Image:
        """The middle one of the frames that are taken, as the model sees it."""
        taken = self._taken(video)
        (shown,) = video.pick([taken[len(taken) // 2]])
        *_, (height, width) = self.frame.sides(shown)
        rows, columns = (max(1, count) for count in self.frame.grid(shown))
        return Image.fromarray(self._resized(shown, rows * height, columns * width))

    def shapes(self, media: Media) -> list[tuple[int, int]]:
        """Rows and columns of patches of each part, in the order of the prompt."""
        found = self.frame.shapes(media)
        tokens = sum(map(math.prod, found)) // self.frame.merge**2
        return found * (media.tokens // tokens)

    def _taken(self, video: Video) -> Sequence[int]:
        """As transformers' MiniCPMV4_6VideoProcessor.sample_frames.

        Where the rate varies, those that are on screen at its times.
        """
        if video.fps is None:
            return range(video.count)
        duration, last = video.count / video.fps, video.count - 1
        times = [float(second) for second in range(math.ceil(duration))]
        if duration > self.frames:
            all_of = [round(n * LONG, 1) for n in range(int(duration / LONG))]
            chosen = np.linspace(0, len(all_of) - 1, min(self.frames, len(all_of)), dtype=int)
            times = [all_of[n] for n in chosen]
        if video.seconds is not None:
            return [min(int(place), last) for place in video.places(np.array(times))]
        return [min(int(time * video.fps), last) for time in times]

    def _resized(self, frame: Image.Image, height: int, width: int) -> Pixels:
        check_size((width, height), f"frame of {frame.width} x {frame.height}, resized")
        return resize(np.asarray(frame, np.uint8), height, width, self.frame.processing.resample)

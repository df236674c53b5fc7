"""Videos as a fixed number of frames of one size (Video-LLaVA, arXiv 2311.10122)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from avl_plugins.graph_io import PIXELS
from avl_runtime.vision.frame_steps import fit_frame, frame_values, spread
from avl_runtime.vision.load.videos import Video
from avl_runtime.vision.media import Cells, Media, image_hash
from avl_runtime.vision.steps import ImageProcessing


@dataclass(frozen=True, slots=True)
class FixedVideo:
    """Graph: pixel_values [frames, 3, H, W] -> features [frames, tokens, C].

    At most `frames` are taken, spread evenly over the video; a shorter video is taken whole.
    `tokens` a frame exceed rows x columns of `grid` by one where the class token comes first.
    """

    kind: Literal["fixed_video"]
    processing: ImageProcessing
    frames: int
    grid: tuple[int, int]
    tokens: int

    def prepare(self, video: Video, token: str) -> Media:
        """Make a video ready; `token` is the text of a video token.

        Raises:
            VideoError: a file is damaged, or its frames are too large together.
            ImageError: a frame is too long and narrow to be resized.
        """
        picked = video.pick(spread(video.count, self.frames))
        steps = self.processing
        values = [frame_values(fit_frame(frame, steps), steps) for frame in picked]
        rows, columns = self.grid
        cells = np.full((len(picked), self.tokens), -1, np.int64)
        cells[:, self.tokens - rows * columns :] = np.arange(rows * columns)
        return Media(
            kind="video",
            inputs={PIXELS: np.stack(values)},
            replacement=token * cells.size,
            tokens=cells.size,
            digest=frames_hash(picked),
            cells=Cells(self.grid, cells.reshape(-1)),
        )

    def view(self, video: Video) -> Image.Image:
        """The middle one of the frames that are taken, as the model sees it."""
        taken = spread(video.count, self.frames)
        (frame,) = video.pick([taken[len(taken) // 2]])
        return Image.fromarray(fit_frame(frame, self.processing))


def frames_hash(frames: Sequence[Image.Image]) -> str:
    """SHA-256 of what frames show and of their order."""
    hashes = "".join(image_hash(frame) for frame in frames)
    return hashlib.sha256(hashes.encode()).hexdigest()

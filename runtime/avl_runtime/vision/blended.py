"""Features blended bilinearly: LLaVA-OneVision (arXiv 2408.03326).

A picture alone is cut into tiles as in `anyres`, and a grid of too many features is made smaller;
pictures that come together are one tile each; the frames of a video are one tile each, a quarter
of whose features remains. All go through one graph: pixel_values [tiles, 3, H, W] -> features
[tiles * side * side + 1, C], of which the last is a line break's. A token is the weighted sum of
four features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.graph_io import PIXELS
from avl_runtime.vision.anyres import Resolutions, cut_up, shown_cells
from avl_runtime.vision.frame_steps import fit_frame, frame_values, spread
from avl_runtime.vision.frames import frames_hash
from avl_runtime.vision.load.videos import Video
from avl_runtime.vision.media import Blend, Box, Cells, Media, image_hash
from avl_runtime.vision.steps import ImageProcessing, fit, part_fitted, pixel_values

SLACK = 1.1  # a grid is made smaller if its sides are this many times too long


@dataclass(frozen=True, slots=True)
class BlendedImage:
    """A picture alone; see `anyres.AnyresImage` for the fields that both have.

    `most` is how many tiles' features are kept of its grid, about.
    """

    kind: Literal["blended"]
    processing: ImageProcessing
    resolutions: Resolutions
    tile: int
    side: int
    most: int

    def prepare(self, image: Image.Image, token: str) -> Media:
        """Make an RGB picture ready; `token` is the text of an image token."""
        cut = cut_up(image, self.resolutions, self.tile, self.side, self.processing)
        grid = cut.rows.shape
        ratio = math.sqrt(cut.rows.size / (self.most * self.side**2))
        if ratio > SLACK:
            grid = (int(grid[0] // ratio), int(grid[1] // ratio))
        overview = shrink(np.arange(self.side**2)[:, None], (self.side**2, 1))
        blend = join(overview, end_lines(shrink(cut.rows, grid), cut.line_break))
        return Media(
            kind="image",
            inputs={PIXELS: cut.pixel_values},
            replacement=token * len(blend.pack),
            tokens=len(blend.pack),
            digest=image_hash(image),
            cells=shown_cells(grid, self.side, cut.seen),
            size=(image.height, image.width),
            blend=blend,
        )

    def view(self, image: Image.Image) -> Image.Image:
        """The part of a picture that its tokens show, resized as the model sees it."""
        return cut_up(image, self.resolutions, self.tile, self.side, self.processing).view


@dataclass(frozen=True, slots=True)
class SquareImage:
    """A picture among others: one tile, made square with bars of `background` (RGB)."""

    kind: Literal["square"]
    processing: ImageProcessing
    background: tuple[int, int, int]
    side: int

    def prepare(self, image: Image.Image, token: str) -> Media:
        """Make an RGB picture ready; `token` is the text of an image token."""
        values = pixel_values(fit(self._square(image), self.processing), self.processing)
        count = self.side**2
        blend = join(shrink(np.arange(count + 1)[:, None], (count + 1, 1)))
        return Media(
            kind="image",
            inputs={PIXELS: values[None]},
            replacement=token * (count + 1),
            tokens=count + 1,
            digest=f"square {image_hash(image)}",
            cells=Cells(
                (self.side, self.side), np.append(np.arange(count), -1), self._seen(*image.size)
            ),
            size=(image.height, image.width),
            blend=blend,
        )

    def view(self, image: Image.Image) -> Image.Image:
        """The square, resized as the model sees it."""
        return Image.fromarray(fit(self._square(image), self.processing))

    def _seen(self, width: int, height: int) -> Box:
        side = max(width, height)
        inner = part_fitted((side, side), self.processing)
        places = [
            (edge * side - (side - length) // 2) / length
            for edge, length in zip(inner, (width, height) * 2, strict=True)
        ]
        left, top, right, bottom = places
        return left, top, right, bottom

    def _square(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        square = Image.new("RGB", (side, side), self.background)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square


@dataclass(frozen=True, slots=True)
class BlendedVideo:
    """At most `frames`, spread evenly over a video; a shorter one is taken whole."""

    kind: Literal["blended_video"]
    processing: ImageProcessing
    frames: int
    side: int

    def prepare(self, video: Video, token: str) -> Media:
        """Make a video ready; `token` is the text of a video token.

        Raises:
            VideoError: a file is damaged, or its frames are too large together.
        """
        picked = video.pick(spread(video.count, self.frames))
        steps = self.processing
        values = [frame_values(fit_frame(frame, steps), steps) for frame in picked]
        count, half = self.side**2, (self.side + 1) // 2
        one = shrink(np.arange(count).reshape(self.side, self.side), (half, half))
        starts = count * np.arange(len(picked)).reshape(-1, 1, 1, 1)
        every = Blend(one.pack + starts, np.repeat(one.weights[None], len(picked), 0))
        blend = join(every, shrink(np.array([[count * len(picked)]]), (1, 1)))
        return Media(
            kind="video",
            inputs={PIXELS: np.stack(values)},
            replacement=token * len(blend.pack),
            tokens=len(blend.pack),
            digest=frames_hash(picked),
            cells=Cells((half, half), np.append(np.tile(np.arange(half**2), len(picked)), -1)),
            blend=blend,
        )

    def view(self, video: Video) -> Image.Image:
        """The middle one of the frames that are taken, as the model sees it."""
        taken = spread(video.count, self.frames)
        (frame,) = video.pick([taken[len(taken) // 2]])
        return Image.fromarray(fit_frame(frame, self.processing))


def shrink(rows: NDArray[np.int64], size: tuple[int, ...]) -> Blend:
    """[lines, columns] features made [*size], bilinearly without antialiasing.

    As torch.nn.functional.interpolate does. Where nothing shrinks, a feature is only itself.
    """
    (above, below, down), (left, right, along) = (
        _between(before, after) for before, after in zip(rows.shape, size, strict=True)
    )
    corners = [rows[np.ix_(y, x)] for y in (above, below) for x in (left, right)]
    shares = [np.outer(y, x) for y in (1 - down, down) for x in (1 - along, along)]
    return Blend(np.stack(corners, -1), np.stack(shares, -1))


def end_lines(blend: Blend, line_break: int) -> Blend:
    """[lines, columns, 4] with a line break behind each line."""
    sides = ((0, 0), (0, 1), (0, 0))
    weights = np.pad(blend.weights, sides)
    weights[:, -1, 0] = 1
    return Blend(np.pad(blend.pack, sides, constant_values=line_break), weights)


def join(*blends: Blend) -> Blend:
    """All tokens in a row, [tokens, 4]."""
    return Blend(
        np.concatenate([blend.pack.reshape(-1, 4) for blend in blends]),
        np.concatenate([blend.weights.reshape(-1, 4) for blend in blends]),
    )


def _between(
    before: int, after: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each of `after` places the two of `before` around it, and how near the second is."""
    scale = np.float32(before) / np.float32(max(after, 1))
    place = scale * (np.arange(after, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    place = np.maximum(place, np.float32(0))
    first = np.minimum(place.astype(np.int64), before - 1)
    return first, np.minimum(first + 1, before - 1), np.minimum(place - first, 1).astype(np.float32)

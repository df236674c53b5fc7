"""Pictures of any resolution: an overview and tiles (LLaVA-NeXT, arXiv 2310.03744 and its blog).

A picture is fitted into the best of some resolutions, which are whole numbers of tiles, and padded
with black. The tower reads the overview and the tiles, one image each; the features of the tiles
are laid out as one grid, what lies wholly in the padding is cut away, and each line of the grid
ends with a feature that stands for a line break.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.graph_io import PIXELS
from avl_runtime.vision.media import Blend, Box, Cells, Media, image_hash
from avl_runtime.vision.steps import ImageProcessing, fit, part_fitted, pixel_values

Resolutions = tuple[tuple[int, int], ...]  # height and width


@dataclass(frozen=True, slots=True)
class AnyresImage:
    """Graph: pixel_values [tiles, 3, H, W] -> features [tiles * side * side + 1, C].

    The last feature is a line break's. `processing` resizes to a tile of `tile` x `tile` pixels,
    whose features are `side` x `side`; `resolutions` are multiples of `tile`.
    """

    kind: Literal["anyres"]
    processing: ImageProcessing
    resolutions: Resolutions
    tile: int
    side: int

    def prepare(self, image: Image.Image, token: str) -> Media:
        """Make an RGB picture ready; `token` is the text of an image token."""
        cut = cut_up(image, self.resolutions, self.tile, self.side, self.processing)
        pack = np.concatenate(
            [np.arange(self.side**2), end_lines(cut.rows, cut.line_break).ravel()]
        )
        return Media(
            kind="image",
            inputs={PIXELS: cut.pixel_values},
            replacement=token * len(pack),
            tokens=len(pack),
            digest=image_hash(image),
            cells=shown_cells(cut.rows.shape, self.side, cut.seen),
            blend=Blend(pack[:, None], np.ones((len(pack), 1), np.float32)),
            size=(image.height, image.width),
        )

    def view(self, image: Image.Image) -> Image.Image:
        """The part of a picture that its tokens show, resized as the model sees it."""
        return cut_up(image, self.resolutions, self.tile, self.side, self.processing).view


@dataclass(frozen=True, slots=True, eq=False)
class CutUp:
    """A picture as overview and tiles.

    Attributes:
        pixel_values: [1 + tiles, 3, H, W] float32, the overview first.
        rows: [lines, columns] int64, the number of the feature that shows each cell of the
            picture; without a line if the picture is so narrow that padding takes all.
        line_break: the number of the feature behind all others.
        view: what the cells show; the overview if there are none.
        seen: the part of the picture that `view` is.
    """

    pixel_values: NDArray[np.float32]
    rows: NDArray[np.int64]
    line_break: int
    view: Image.Image
    seen: Box


def cut_up(
    image: Image.Image, resolutions: Resolutions, tile: int, side: int, steps: ImageProcessing
) -> CutUp:
    """Cut an RGB picture into tiles of `tile` pixels with `side` x `side` features each."""
    height, width = best_resolution((image.height, image.width), resolutions)
    canvas = _canvas(image, (height, width), Image.Resampling(steps.resample))
    down, across = height // tile, width // tile
    tiles = canvas.reshape(down, tile, across, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    overview = fit(image, steps)
    features = np.arange(side**2, (1 + down * across) * side**2, dtype=np.int64)
    lines, columns = down * side, across * side
    blocks = features.reshape(down, across, side, side).swapaxes(1, 2)
    grid = blocks.reshape(lines, columns)
    top, left = _padding((image.height, image.width), (lines, columns))
    rows = grid[top : lines - top, left : columns - left]
    # Where a tile is no whole number of features' pixels, a cell's edges fall between pixels.
    above, beside = top * height // lines, left * width // columns
    inside = canvas[above : height - above, beside : width - beside]
    wide, high = _fitted(image, (height, width))
    left, upper = (width - wide) // 2, (height - high) // 2
    seen = (
        (beside - left) / wide,
        (above - upper) / high,
        (width - beside - left) / wide,
        (height - above - upper) / high,
    )
    return CutUp(
        pixel_values=np.stack([pixel_values(part, steps) for part in (overview, *tiles)]),
        rows=rows,
        line_break=(1 + down * across) * side**2,
        view=Image.fromarray(inside if rows.size else overview),
        seen=seen if rows.size else part_fitted(image.size, steps),
    )


def best_resolution(size: tuple[int, int], resolutions: Resolutions) -> tuple[int, int]:
    """The resolution that keeps most of a picture's pixels, and of those the smallest.

    All are height and width. Ties go to the first, as in transformers.
    """
    height, width = size

    def fitness(resolution: tuple[int, int]) -> tuple[int, int]:
        scale = min(resolution[1] / width, resolution[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    return max(resolutions, key=fitness)


def end_lines(rows: NDArray[np.int64], line_break: int) -> NDArray[np.int64]:
    """[lines, columns] with a line break behind each line, [lines, columns + 1]."""
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=line_break)


def shown_cells(grid: tuple[int, ...], side: int, seen: Box) -> Cells:
    """What the tokens show: first `side` x `side` of an overview, then lines with their breaks.

    Without lines it is the overview that shows the picture, and what `seen` is about.
    """
    lines, columns = grid
    fine = end_lines(np.arange(lines * columns).reshape(lines, columns), -1).ravel()
    if not lines * columns:
        return Cells((side, side), np.concatenate([np.arange(side**2), fine]), seen)
    index = np.concatenate([np.full(side**2, -1), fine])
    return Cells((lines, columns), index, seen, overview=(0, side, side))


def _canvas(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling
) -> NDArray[np.uint8]:
    """A picture in the middle of a black canvas of `size` (height, width), as large as fits."""
    height, width = size
    fitted = _fitted(image, size)
    left, top = (width - fitted[0]) // 2, (height - fitted[1]) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    pixels = np.asarray(image.resize(fitted, resample))
    canvas[top : top + fitted[1], left : left + fitted[0]] = pixels
    return canvas


def _fitted(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a picture that fills `size` (height, width) as far as it can."""
    height, width = size
    by_width, by_height = width / image.width, height / image.height
    if by_width < by_height:
        return width, min(math.ceil(image.height * by_width), height)
    return min(math.ceil(image.width * by_height), width), height


def _padding(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Lines above (and below), columns left (and right) of a picture in a grid that it fits.

    Not quite where the canvas has them: this is the model's arithmetic, of whole features.
    """
    height, width = size
    lines, columns = grid
    if width / height > columns / lines:
        return (lines - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (lines / height), 7))) // 2

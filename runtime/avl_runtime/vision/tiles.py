"""Pictures cut into tiles of one size, and videos as lines of frames (InternVL, arXiv 2504.10479).

Every tile becomes the same number of tokens. A picture of several tiles comes with a thumbnail,
the whole picture in the size of a tile, behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.graph_io import PIXELS
from avl_runtime.vision.frame_steps import fit_frame, frame_values, middles
from avl_runtime.vision.frames import frames_hash
from avl_runtime.vision.load.images import check_size
from avl_runtime.vision.load.videos import Video
from avl_runtime.vision.media import Cells, Media, image_hash
from avl_runtime.vision.steps import ImageProcessing, pixel_values


@dataclass(frozen=True, slots=True)
class TiledImage:
    """Graph: pixel_values [tiles, 3, H, W] -> features [tiles, rows x columns of `grid`, C].

    Attributes:
        tile: height and width of a tile in pixels, to which pictures are resized.
        tiles: least and greatest number of tiles, the thumbnail aside.
        grid: rows and columns of a tile's tokens.
        around: what the prompt holds before and behind a picture's tokens.
    """

    kind: Literal["tiles"]
    processing: ImageProcessing
    tile: tuple[int, int]
    tiles: tuple[int, int]
    grid: tuple[int, int]
    around: tuple[str, str]

    def prepare(self, image: Image.Image, token: str) -> Media:
        """Make an RGB picture ready; `token` is the text of an image token.

        Raises:
            ImageError: so many tiles are allowed that the picture takes too many pixels.
        """
        rows, columns = best_layout(image.size, self.tile, self.tiles)
        height, width = self.tile
        canvas = np.asarray(self._resized(image, rows, columns))
        split = canvas.reshape(rows, height, columns, width, 3).transpose(0, 2, 1, 3, 4)
        tiles = list(split.reshape(-1, height, width, 3))
        if len(tiles) > 1:
            tiles.append(np.asarray(self._resized(image, 1, 1)))
        values = np.stack([pixel_values(tile, self.processing) for tile in tiles])
        cells = tile_cells(rows, columns, self.grid)
        tokens = len(tiles) * self.grid[0] * self.grid[1]
        index = np.full(tokens, -1, np.int64)  # the thumbnail shows everything
        index[: cells.size] = cells
        before, behind = self.around
        return Media(
            kind="image",
            inputs={PIXELS: values},
            replacement=f"{before}{token * tokens}{behind}",
            tokens=tokens,
            digest=image_hash(image),
            cells=Cells(
                (rows * self.grid[0], columns * self.grid[1]),
                index,
                overview=(cells.size, *self.grid) if tokens > cells.size else None,
            ),
        )

    def view(self, image: Image.Image) -> Image.Image:
        """The whole picture, stretched over its tiles as the model sees it."""
        return self._resized(image, *best_layout(image.size, self.tile, self.tiles))

    def _resized(self, image: Image.Image, rows: int, columns: int) -> Image.Image:
        size = (columns * self.tile[1], rows * self.tile[0])
        check_size(size, f"image of {image.width} x {image.height}, resized")
        return image.resize(size, Image.Resampling(self.processing.resample))


@dataclass(frozen=True, slots=True)
class FrameLines:
    """Graph: pixel_values [frames, 3, H, W] -> features [frames, rows x columns of `grid`, C].

    At most `frames` are taken, the middle ones of equal parts of the video; a shorter video is
    taken whole. Each is a line of the prompt: `Frame1: `, its tokens between `around`.
    """

    kind: Literal["frame_lines"]
    processing: ImageProcessing
    frames: int
    grid: tuple[int, int]
    around: tuple[str, str]

    def prepare(self, video: Video, token: str) -> Media:
        """Make a video ready; `token` is the text of an image token.

        Raises:
            VideoError: a file is damaged, or its frames are too large together.
        """
        picked = video.pick(middles(video.count, self.frames))
        steps = self.processing
        values = [frame_values(fit_frame(frame, steps), steps) for frame in picked]
        cells = self.grid[0] * self.grid[1]
        before, behind = self.around
        lines = [
            f"Frame{number}: {before}{token * cells}{behind}"
            for number in range(1, len(picked) + 1)
        ]
        return Media(
            kind="video",
            inputs={PIXELS: np.stack(values)},
            replacement="\n".join(lines),
            tokens=len(picked) * cells,
            digest=frames_hash(picked),
            cells=Cells(self.grid, np.tile(np.arange(cells), len(picked))),
        )

    def view(self, video: Video) -> Image.Image:
        """The middle one of the frames that are taken, as the model sees it."""
        taken = middles(video.count, self.frames)
        (frame,) = video.pick([taken[len(taken) // 2]])
        return Image.fromarray(fit_frame(frame, self.processing))


@lru_cache(maxsize=256)
def best_layout(
    size: tuple[int, int], tile: tuple[int, int], tiles: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of tiles whose shape is nearest to a picture's.

    Of several such, the largest whose area is below twice the picture's.

    Args:
        size: the picture's width and height.
        tile: a tile's height and width.
        tiles: least and greatest number of tiles.
    """
    least, most = tiles
    layouts = [
        (rows, columns)
        for columns in range(1, most + 1)
        for rows in range(1, most // columns + 1)
        if rows * columns >= least
    ]
    width, height = size
    best, nearest = (1, 1), float("inf")
    for rows, columns in sorted(layouts, key=lambda layout: layout[0] * layout[1]):
        away = abs(width / height - columns / rows)
        if away < nearest:
            best, nearest = (rows, columns), away
        elif away == nearest and width * height > 0.5 * tile[0] * tile[1] * rows * columns:
            best = (rows, columns)
    return best


def tile_cells(rows: int, columns: int, grid: tuple[int, int]) -> NDArray[np.int64]:
    """The cell of every token, tile by tile, in a picture of rows x columns tiles."""
    down, across = grid
    cells = np.arange(rows * down * columns * across).reshape(rows, down, columns, across)
    return cells.transpose(0, 2, 1, 3).reshape(-1)

"""Pictures of any size in patches, large ones as tiles and the whole (LFM2-VL).

As transformers' Lfm2VlProcessor and the NaFlex tower of SigLIP 2 (arXiv 2502.14786): patches are
rows of a picture, and learned positions of a square are stretched over it, antialiased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.errors import FormatError
from avl_plugins.graph_io import PIXELS, TABLE_SHARES
from avl_runtime.vision.frame_steps import frame_values
from avl_runtime.vision.load.images import ImageError, check_size
from avl_runtime.vision.media import Cells, Media, image_hash
from avl_runtime.vision.patches import smart_size
from avl_runtime.vision.resample import resize, shares_along
from avl_runtime.vision.steps import MAX_SIDE, ImageProcessing
from avl_runtime.vision.tiles import best_layout, tile_cells

MOST_TILES = 64


@dataclass(frozen=True, slots=True)
class PictureText:
    """What the prompt says around the tokens of a picture.

    begin, end: in front of them and behind them.
    whole: in front of those that show all of it, behind its tiles.
    """

    begin: str
    whole: str
    end: str

    def of(self, rows: int, columns: int, tile: str, whole: str) -> str:
        """A picture of rows x columns tiles, or of none; their tokens, and those of the whole."""
        tiles = [
            f"<|img_row_{row}_col_{column}|>{tile}"
            for row in range(1, rows + 1)
            for column in range(1, columns + 1)
        ]
        marked = f"{self.whole}{whole}" if tiles and whole else whole
        return f"{self.begin}{''.join(tiles)}{marked}{self.end}"


@dataclass(frozen=True, slots=True)
class PatchedTiles:
    """Graph: patches of one size of picture -> features [tiles, cells, C]. With P patches, in the
    order of cells of `merge` x `merge`, which become a token each:

        pixel_values [tiles, P, D], a patch row by row of its pixels; shares [P, table**2], how
        much of each learned position a patch's is.

    A picture whose area, in whole cells, is above `tolerance` times that of `tokens`' greatest is
    cut into tiles, and the whole of it, as small as other pictures are made, comes behind them.

    Attributes:
        size: of a patch in pixels.
        table: side of the square of learned positions.
        tile: side of a tile in pixels, a multiple of a cell.
        tiles: least and greatest number of tiles; (1, 1): no picture is cut.
        tokens: the least and the most that a picture becomes that is no tile.
        overview: whether the whole of a picture follows its tiles.

    Raises:
        FormatError: sizes that no picture can be cut with.
    """

    kind: Literal["patched_tiles"]
    processing: ImageProcessing
    size: int
    merge: int
    table: int
    tile: int
    tiles: tuple[int, int]
    tokens: tuple[int, int]
    tolerance: float
    overview: bool
    text: PictureText

    def __post_init__(self) -> None:
        (least, most), (fewest, greatest) = self.tiles, self.tokens
        sides = min(self.size, self.merge, self.table, fewest, least) > 0
        if not sides or not self.size * self.merge <= self.tile <= MAX_SIDE:
            raise FormatError(
                f"image layout: expected sizes above 0 and tiles of a cell to {MAX_SIDE} pixels, "
                f"found patches of {self.size}, cells of {self.merge} and tiles of {self.tile}"
            )
        if self.tile % self.cell or not least <= most <= MOST_TILES or greatest < fewest:
            raise FormatError(
                f"image layout: expected tiles of whole cells of {self.cell} pixels, at most "
                f"{MOST_TILES}, and limits in order, found {self.tile}, {self.tiles} and "
                f"{self.tokens}"
            )

    @property
    def cell(self) -> int:
        """Side of a cell in pixels."""
        return self.size * self.merge

    @property
    def most(self) -> int:
        """Patches that a tile or a picture may have, as in transformers."""
        tile = (self.tile // self.size) ** 2 if self.tiles != (1, 1) else 0
        return max(tile, self.tokens[1] * self.merge**2)

    def prepare(self, image: Image.Image, token: str) -> Media:
        """Make an RGB picture ready; `token` is the text of an image token.

        Raises:
            ImageError: the picture takes too many pixels, or is too long and narrow.
        """
        rows, columns = self.grid(image)
        side = self.tile // self.cell
        # The whole is looked at first, as it is what may be refused.
        height, width = self._small(image) if self.overview or not rows else (0, 0)
        small = height // self.cell, width // self.cell
        shown = math.prod(small)
        parts_of: list[NDArray[np.uint8]] = []
        if rows:
            canvas = self._resized(image, rows * self.tile, columns * self.tile)
            parts = canvas.reshape(rows, self.tile, columns, self.tile, 3).swapaxes(1, 2)
            parts_of.append(parts.reshape(-1, self.tile, self.tile, 3))
        if shown:
            parts_of.append(self._resized(image, height, width)[None])
        cells = tile_cells(rows, columns, (side, side)) if rows else np.arange(shown)
        behind = shown if rows else 0
        index = np.concatenate([cells, np.full(behind, -1, np.int64)])
        inputs, *more = map(self._inputs, parts_of)
        return Media(
            kind="image",
            inputs=inputs,
            replacement=self.text.of(rows, columns, token * side * side, token * shown),
            tokens=len(index),
            digest=image_hash(image),
            cells=Cells(
                (rows * side, columns * side) if rows else small,
                index,
                overview=(cells.size, *small) if behind else None,
            ),
            more=tuple(more),
        )

    def view(self, image: Image.Image) -> Image.Image:
        """The whole picture, as large as its tiles, or as the model sees it."""
        rows, columns = self.grid(image)
        size = (rows * self.tile, columns * self.tile) if rows else self._small(image)
        return Image.fromarray(self._resized(image, *size))

    def grid(self, image: Image.Image) -> tuple[int, int]:
        """Rows and columns of tiles that a picture is cut into; (0, 0) if it is not."""
        height, width = (
            max(self.size, round(side / self.cell) * self.cell)
            for side in (image.height, image.width)
        )
        large = height * width > self.tokens[1] * self.cell**2 * self.tolerance
        if not large or self.tiles == (1, 1):
            return 0, 0
        rows, columns = best_layout(image.size, (self.tile, self.tile), self.tiles)
        return (rows, columns) if rows * columns > 1 else (0, 0)

    def shapes(self, media: Media) -> list[tuple[int, int]]:
        """Rows and columns of patches of each tile, or of a picture, in the order of inputs."""
        side = self.tile // self.size
        if media.cells.overview is None and len(media.inputs[PIXELS]) == 1:
            rows, columns = media.cells.grid
            return [(rows * self.merge, columns * self.merge)]
        found = [(side, side)] * len(media.inputs[PIXELS])
        if media.cells.overview is not None:
            _, rows, columns = media.cells.overview
            found.append((rows * self.merge, columns * self.merge))
        return found

    def _small(self, image: Image.Image) -> tuple[int, int]:
        """Height and width of a picture in one piece."""
        least, most = (count * self.cell**2 for count in self.tokens)
        found = smart_size(image.height, image.width, self.cell, least, most, fewest=1)
        if math.prod(found) > self.most * self.size**2:
            raise ImageError(
                f"image of {image.width} x {image.height}: expected one that is less long and "
                f"narrow, of at most {self.most} patches as the model sees it, found "
                f"{math.prod(found) // self.size**2}; crop it first"
            )
        return found

    def _resized(self, image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
        check_size((width, height), f"image of {image.width} x {image.height}, resized")
        return resize(np.asarray(image, np.uint8), height, width, self.processing.resample)

    def _inputs(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The graph's, of pictures [T, H, W, 3] of one size."""
        values = np.stack([frame_values(one, self.processing) for one in pixels])
        rows, columns = (side // self.cell for side in pixels.shape[1:3])
        merge, size = self.merge, self.size
        parts = values.reshape(len(pixels), 3, rows, merge, size, columns, merge, size)
        ordered = parts.transpose(0, 2, 5, 3, 6, 4, 7, 1)
        count = rows * columns * merge**2
        return {
            PIXELS: ordered.reshape(len(pixels), count, 3 * size**2),
            TABLE_SHARES: self._shares(rows, columns),
        }

    def _shares(self, rows: int, columns: int) -> NDArray[np.float32]:
        """[P, table**2] of a picture of rows x columns cells."""
        merge, table = self.merge, self.table
        down, across = (shares_along(table, count * merge) for count in (rows, columns))
        both = down[:, None, :, None] * across[None, :, None, :]
        split = both.reshape(rows, merge, columns, merge, table**2).swapaxes(1, 2)
        return split.reshape(math.prod(split.shape[:4]), table**2).astype(np.float32)

"""Pictures of any size in patches, large ones as the whole and slices behind it (MiniCPM-V).

As transformers' MiniCPMV4_6ImageProcessor (LLaVA-UHD, arXiv 2403.11703): whole and slices have
about the same area each, and their sides are whole cells of patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.errors import FormatError
from avl_plugins.graph_io import PIXELS, TABLE_ROWS
from avl_runtime.vision.load.images import ImageError, check_size
from avl_runtime.vision.media import Block, Cells, Media, image_hash
from avl_runtime.vision.patches import MAX_PATCHES
from avl_runtime.vision.steps import MAX_SIDE, ImageProcessing, pixel_values
from avl_runtime.vision.tiles import tile_cells

MERGE = 4  # patches along a cell, which become one token: two by two, and these two by two
MOST_SLICES = 64


@dataclass(frozen=True, slots=True)
class SlicedImage:
    """Graph: patches of one size of picture -> features [parts, cells, C]. With P patches, cell by
    cell, in each cell two by two of them side by side:

        pixel_values [parts, P, 3 * size**2], a patch channel by channel; places [P] int64, which
        learned position a patch has.

    A picture of a larger area than `resolution`**2 is the whole, and behind it its slices.

    Attributes:
        size: of a patch in pixels.
        table: side of the square of learned positions.
        resolution: side of a square with the area that a part has, about.
        slices: the most into which a picture is cut; 1: none is.
        whole, slice: what the prompt holds before and behind the tokens of each.
        numbers: what stands before and behind a picture's number in the conversation, counted from
            0, in front of it all; None: no number.

    Raises:
        FormatError: sizes that no picture can be cut with.
    """

    kind: Literal["slices"]
    processing: ImageProcessing
    size: int
    table: int
    resolution: int
    slices: int
    whole: tuple[str, str]
    slice: tuple[str, str]
    numbers: tuple[str, str] | None

    def __post_init__(self) -> None:
        if min(self.size, self.table) < 1 or not self.cell <= self.resolution <= MAX_SIDE:
            raise FormatError(
                f"image layout: expected sizes above 0 and parts of a cell to {MAX_SIDE} pixels, "
                f"found patches of {self.size}, a table of {self.table} and {self.resolution}"
            )
        if not 1 <= self.slices <= MOST_SLICES:
            raise FormatError(
                f"image layout: expected 1 to {MOST_SLICES} slices, found {self.slices}"
            )

    @property
    def cell(self) -> int:
        """Side of a cell in pixels."""
        return self.size * MERGE

    def prepare(self, image: Image.Image, token: str) -> Media:
        """Make an RGB picture ready; `token` is the text of an image token.

        Raises:
            ImageError: the picture takes too many pixels or patches.
        """
        rows, columns = self.grid(image)
        height, width = self._best(image.height, image.width)
        down, across = height // self.cell, width // self.cell
        inputs = self._inputs(self._resized(image, height, width)[None])
        counts, more = [down * across], []
        cells, grid = np.arange(down * across), (down, across)
        if rows:
            tall, wide = self._slice_size(image, rows, columns)
            canvas = self._resized(image, rows * tall, columns * wide)
            parts = canvas.reshape(rows, tall, columns, wide, 3).swapaxes(1, 2)
            more.append(self._inputs(parts.reshape(-1, tall, wide, 3)))
            side = tall // self.cell, wide // self.cell
            counts += [math.prod(side)] * (rows * columns)
            behind = tile_cells(rows, columns, side)
            cells, grid = (
                np.concatenate([np.full_like(cells, -1), behind]),
                (rows * side[0], columns * side[1]),
            )
        return Media(
            kind="image",
            inputs=inputs,
            replacement=self._text(token, counts, columns),
            tokens=len(cells),
            digest=image_hash(image),
            cells=Cells(grid, cells, overview=(0, down, across) if rows else None),
            # Text stands between parts, and positions count on.
            blocks=tuple(Block(np.tile(np.arange(n), (3, 1)), n) for n in counts),
            more=tuple(more),
            numbers=self.numbers,
        )

    def view(self, image: Image.Image) -> Image.Image:
        """The whole picture, as large as its slices, or as the model sees it."""
        rows, columns = self.grid(image)
        if not rows:
            return Image.fromarray(self._resized(image, *self._best(image.height, image.width)))
        height, width = self._slice_size(image, rows, columns)
        return Image.fromarray(self._resized(image, rows * height, columns * width))

    def grid(self, image: Image.Image) -> tuple[int, int]:
        """Rows and columns of slices that a picture is cut into; (0, 0) if it is not."""
        ratio = math.log(image.width / image.height)
        wanted = min(
            math.ceil(image.width * image.height / (self.resolution * self.resolution)), self.slices
        )
        if wanted <= 1:
            return 0, 0
        counts = [n for n in (wanted - 1, wanted, wanted + 1) if 1 < n <= self.slices]
        grids = [(rows, n // rows) for n in counts for rows in range(1, n + 1) if n % rows == 0]
        error = {one: abs(ratio - math.log(one[1] / one[0])) for one in grids}
        # Of several that fit alike: more rows, and of as many the first.
        return min(grids, key=lambda one: (error[one], -one[0]))

    def shapes(self, media: Media) -> list[tuple[int, int]]:
        """Rows and columns of patches of each part, in the order of the prompt."""
        rows, columns = media.cells.grid
        if media.cells.overview is None:
            return [(rows * MERGE, columns * MERGE)]
        _, down, across = media.cells.overview
        count = len(media.more[0][PIXELS])
        cells = media.cells.index[down * across :][: rows * columns // count]  # of the first slice
        wide = int(np.count_nonzero(cells < columns))  # those in the uppermost line
        split = (len(cells) // wide * MERGE, wide * MERGE)
        return [(down * MERGE, across * MERGE), *[split] * count]

    def _slice_size(self, image: Image.Image, rows: int, columns: int) -> tuple[int, int]:
        height, width = _nearest(image.height, rows), _nearest(image.width, columns)
        return self._best(height / rows, width / columns)

    def _best(self, height: float, width: float) -> tuple[int, int]:
        """Height and width of a part in whole cells: this ratio, and the area that parts have."""
        ratio = width / height
        height = int(self.resolution / math.sqrt(ratio))
        found = _nearest(height, self.cell), _nearest(int(height * ratio), self.cell)
        if math.prod(found) > MAX_PATCHES * self.size**2:
            raise ImageError(
                f"image of {found[1]} x {found[0]} as the model sees it: expected at most "
                f"{MAX_PATCHES} patches, found {math.prod(found) // self.size**2}; crop it first"
            )
        return found

    def _resized(self, image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
        check_size((width, height), f"image of {image.width} x {image.height}, resized")
        steps = self.processing
        return np.asarray(image.resize((width, height), Image.Resampling(steps.resample)), np.uint8)

    def _inputs(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The graph's, of parts [T, H, W, 3] of one size."""
        values = np.stack([pixel_values(one, self.processing) for one in pixels])
        rows, columns = (side // self.cell for side in pixels.shape[1:3])
        parts = values.reshape(len(pixels), 3, rows, 2, 2, self.size, columns, 2, 2, self.size)
        ordered = parts.transpose(0, 2, 6, 3, 7, 4, 8, 1, 5, 9)
        places = self._places(rows * MERGE, columns * MERGE)
        split = places.reshape(rows, 2, 2, columns, 2, 2).transpose(0, 3, 1, 4, 2, 5)
        return {
            PIXELS: ordered.reshape(len(pixels), places.size, 3 * self.size**2),
            TABLE_ROWS: split.reshape(-1),
        }

    def _places(self, rows: int, columns: int) -> NDArray[np.int64]:
        """[rows, columns], the learned position of each patch: the one at its share of a side.

        transformers compares shares in float32, which gives some patches their neighbour's.
        """
        step = 1 / self.table
        edges = (step + np.arange(math.ceil((1.0 - step) / step)) * step).astype(np.float32)
        down, across = (
            edges.searchsorted(np.arange(count, dtype=np.float32) / np.float32(count), "right")
            for count in (rows, columns)
        )
        return down[:, None] * self.table + across

    def _text(self, token: str, counts: list[int], columns: int) -> str:
        (before, behind), (begin, end) = self.whole, self.slice
        parts = [f"{begin}{token * count}{end}" for count in counts[1:]]
        lines = ["".join(parts[i : i + columns]) for i in range(0, len(parts), max(1, columns))]
        return f"{before}{token * counts[0]}{behind}" + "\n".join(lines)


def _nearest(length: float, unit: int) -> int:
    """The multiple of `unit`, one at least, that is nearest to `length`."""
    return max(round(length / unit) * unit, unit)

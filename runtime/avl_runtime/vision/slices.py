"""Pictures of any size in patches, large ones as the whole and slices behind it (MiniCPM-V).

As transformers' MiniCPMV4_6ImageProcessor (LLaVA-UHD, arXiv 2403.11703): whole and slices have
about the same area each, and their sides are whole cells of patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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

MERGES = (2, 4)  # patches along a cell, which become one token: two by two, or these again
MOST_SLICES = 64

Pixels = NDArray[np.uint8]
Resize = Callable[[Image.Image, int, int], Pixels]  # to height and width


@dataclass(frozen=True, slots=True)
class SlicedImage:
    """Graph: patches of one size of picture -> features [parts, cells, C]. With P patches in
    `cell_order`:

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
        merge: patches along a cell.

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
    merge: int = 4

    def __post_init__(self) -> None:
        if self.merge not in MERGES:
            raise FormatError(
                f"image layout: expected cells of {MERGES[0]} or {MERGES[1]} patches along a side, "
                f"found {self.merge}"
            )
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
        return self.size * self.merge

    def prepare(self, image: Image.Image, token: str) -> Media:
        """Make an RGB picture ready; `token` is the text of an image token.

        Raises:
            ImageError: the picture takes too many pixels or patches.
        """
        whole, *slices = (self.inputs(self._values(one)) for one in self.cut(image, self._resized))
        cells, counts = self.cells(image)
        return Media(
            kind="image",
            inputs=whole,
            replacement=self.text(token, counts, self.grid(image)[1]),
            tokens=sum(counts),
            digest=image_hash(image),
            cells=cells,
            # Text stands between parts, and positions count on.
            blocks=blocks_of(counts),
            more=tuple(slices),
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

    def sides(self, image: Image.Image) -> list[tuple[int, int]]:
        """Height and width in pixels of the whole, and behind it of each slice."""
        rows, columns = self.grid(image)
        whole = self._best(image.height, image.width)
        if not rows:
            return [whole]
        return [whole, *[self._slice_size(image, rows, columns)] * (rows * columns)]

    def cells(self, image: Image.Image) -> tuple[Cells, list[int]]:
        """What the tokens show, and how many each part has."""
        (down, across), *slices = (
            (height // self.cell, width // self.cell) for height, width in self.sides(image)
        )
        counts = [down * across, *map(math.prod, slices)]
        if not slices:
            return Cells((down, across), np.arange(down * across)), counts
        rows, columns = self.grid(image)
        behind = tile_cells(rows, columns, slices[0])
        index = np.concatenate([np.full(down * across, -1), behind])
        size = rows * slices[0][0], columns * slices[0][1]
        return Cells(size, index, overview=(0, down, across)), counts

    def cut(self, image: Image.Image, resized: Resize) -> list[Pixels]:
        """The whole, [1, H, W, 3], and the slices, [slices, H, W, 3], if there are any."""
        rows, columns = self.grid(image)
        parts = [resized(image, *self._best(image.height, image.width))[None]]
        if rows:
            tall, wide = self._slice_size(image, rows, columns)
            canvas = resized(image, rows * tall, columns * wide)
            split = canvas.reshape(rows, tall, columns, wide, 3).swapaxes(1, 2)
            parts.append(split.reshape(-1, tall, wide, 3))
        return parts

    def inputs(self, values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The graph's, of parts [T, 3, H, W] of one size."""
        rows, columns = (side // self.size for side in values.shape[2:])
        levels = [2] * (self.merge.bit_length() - 1)
        split = (rows // self.merge, *levels, self.size, columns // self.merge, *levels, self.size)
        parts = values.reshape(len(values), 3, *split)
        count = len(levels) + 2  # axes along a side
        down, across = range(2, 2 + count), range(2 + count, 2 + 2 * count)
        places = [axis for pair in zip(down, across, strict=True) for axis in pair]
        ordered = parts.transpose(0, *places[:-2], 1, *places[-2:])
        return {
            PIXELS: ordered.reshape(len(values), rows * columns, 3 * self.size**2),
            TABLE_ROWS: self._places(rows, columns).ravel()[cell_order(rows, columns, self.merge)],
        }

    def text(self, token: str, counts: Sequence[int], columns: int) -> str:
        """What stands for the whole and its slices of so many tokens, `columns` in a line."""
        (before, behind), (begin, end) = self.whole, self.slice
        parts = [f"{begin}{token * count}{end}" for count in counts[1:]]
        lines = ["".join(parts[i : i + columns]) for i in range(0, len(parts), max(1, columns))]
        return f"{before}{token * counts[0]}{behind}" + "\n".join(lines)

    def shapes(self, media: Media) -> list[tuple[int, int]]:
        """Rows and columns of patches of each part of a picture, or of a video's first frame."""
        rows, columns = media.cells.grid
        if media.cells.overview is None:
            return [(rows * self.merge, columns * self.merge)]
        _, down, across = media.cells.overview
        count = len(media.more[0][PIXELS])
        cells = media.cells.index[down * across :][: rows * columns // count]  # of the first slice
        wide = int(np.count_nonzero(cells < columns))  # those in the uppermost line
        split = (len(cells) // wide * self.merge, wide * self.merge)
        return [(down * self.merge, across * self.merge), *[split] * count]

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

    def _resized(self, image: Image.Image, height: int, width: int) -> Pixels:
        check_size((width, height), f"image of {image.width} x {image.height}, resized")
        steps = self.processing
        return np.asarray(image.resize((width, height), Image.Resampling(steps.resample)), np.uint8)

    def _values(self, parts: Pixels) -> NDArray[np.float32]:
        return np.stack([pixel_values(one, self.processing) for one in parts])

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


def blocks_of(counts: Sequence[int]) -> tuple[Block, ...]:
    """Parts of so many tokens, whose positions count on as text's do."""
    return tuple(Block(np.tile(np.arange(n), (3, 1)), n) for n in counts)


def cell_order(rows: int, columns: int, merge: int) -> NDArray[np.int64]:
    """[P]: the patches of rows x columns, cell by cell, in each cell two by two of them together.

    Args:
        merge: patches along a cell, 2 or 4.
    """
    levels = [2] * (merge.bit_length() - 1)
    numbers = np.arange(rows * columns).reshape(rows // merge, *levels, columns // merge, *levels)
    count = 1 + len(levels)
    return numbers.transpose([axis for n in range(count) for axis in (n, n + count)]).ravel()


def _nearest(length: float, unit: int) -> int:
    """The multiple of `unit`, one at least, that is nearest to `length`."""
    return max(round(length / unit) * unit, unit)

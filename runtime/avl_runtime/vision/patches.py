"""Pictures of any size, cut into patches (Qwen2-VL, arXiv 2409.12191, and its successors)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.graph_io import (
    ORDER,
    PATCH_POSITIONS,
    PIXELS,
    TABLE_ROWS,
    TABLE_SHARES,
    WINDOW_MASK,
)
from avl_runtime.vision.load.images import ImageError, check_size
from avl_runtime.vision.media import Block, Cells, Media, image_hash
from avl_runtime.vision.steps import ImageProcessing, fit, pixel_values

MAX_RATIO: Final = 200
# A frame's; what transformers allows Qwen's models at most. Attention holds a part of
# patches x patches scores: 1 GiB in fp32 for Qwen2.5-VL, 4 GiB for the others.
MAX_PATCHES: Final = 1 << 16
Stretch = Literal["corners", "edges", "cubic"]
Sizing = Literal["plain", "widened", "grown", "filled"]
MASKED: Final = -30_000.0  # fp16 holds it, and its exponential is zero


@dataclass(frozen=True, slots=True)
class Patches:
    """How an encoder wants frames cut up.

    A patch is `size` x `size` pixels of `temporal` frames. `merge` x `merge` patches are a cell,
    which becomes one token.

    Attributes:
        window: side in cells of the windows that most layers attend within; None without windows.
        table: side of the square of learned positions that is stretched over a picture; None
            without one.
        stretch: how. "corners": linearly, its corners on the corner patches; "edges": linearly,
            its edges on the picture's edges; "cubic": as "edges", by four along each axis.
    """

    size: int
    temporal: int
    merge: int
    window: int | None
    table: int | None
    stretch: Stretch = "corners"

    @property
    def cell(self) -> int:
        """Side of a cell in pixels."""
        return self.size * self.merge

    @property
    def taps(self) -> int:
        """Learned positions that a patch's is mixed from."""
        return 16 if self.stretch == "cubic" else 4

    def patches_of(self, height: int, width: int) -> int:
        """Patches of a frame of this size, empty places included: they attend to each other."""
        rows, columns = height // self.cell, width // self.cell
        if self.window is not None:
            rows, columns = (-(-n // self.window) * self.window for n in (rows, columns))
        return rows * columns * self.merge**2

    def inputs(self, frames: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The graph's inputs for normalized frames [T * temporal, 3, H, W], multiples of a cell.

        With P patches a frame in the order of cells, D values a patch:

            pixel_values [T, P, D], position_ids [P, 2] int64 (row and column of each patch);
            with `table`: places [P, taps] int64 and shares [P, taps], from which positions a
            patch's is mixed.

        With W windows of S patches, P becomes W, S everywhere; in windows at the edge some places
        are empty, so there are also

            mask [W, S], 0 at patches and MASKED elsewhere; order [cells] int64, where each cell
            lies among the W * S / merge**2 places for one.
        """
        rows, columns = (side // self.cell for side in frames.shape[2:])
        patches = self._cut(frames, rows, columns)
        positions = _positions(rows, columns, self.merge)
        per_patch: dict[str, NDArray[Any]] = {PATCH_POSITIONS: positions}
        if self.table is not None:
            sides = (rows * self.merge, columns * self.merge)
            mixed = _interpolation(positions, sides, self.table, self.stretch)
            per_patch[TABLE_ROWS], per_patch[TABLE_SHARES] = mixed
        if self.window is None:
            count = rows * columns * self.merge**2
            flat = {name: array.reshape(count, -1) for name, array in per_patch.items()}
            return {PIXELS: patches.reshape(len(patches), count, -1), **flat}
        slots = window_slots(rows, columns, self.window)
        held = slots >= 0
        spread = {name: _spread(array[None], slots)[0] for name, array in per_patch.items()}
        return {
            PIXELS: _spread(patches, slots),
            **spread,
            WINDOW_MASK: np.where(held, 0.0, MASKED).astype(np.float32).repeat(self.merge**2, 1),
            ORDER: np.flatnonzero(held)[np.argsort(slots[held])],
        }

    def cells_of(self, height: int, width: int, frames: int = 1) -> Cells:
        """What the tokens of `frames` groups of frames of this size show."""
        rows, columns = height // self.cell, width // self.cell
        return Cells((rows, columns), np.tile(np.arange(rows * columns), frames))

    def block(self, height: int, width: int, times: NDArray[np.int64]) -> Block:
        """M-RoPE positions of groups of frames at `times` [T]."""
        rows, columns = height // self.cell, width // self.cell
        grid = np.meshgrid(times, np.arange(rows), np.arange(columns), indexing="ij")
        return Block(np.stack(grid).reshape(3, -1).astype(np.int64), max(rows, columns))

    def _cut(self, frames: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
        """[T * temporal, 3, H, W] -> [T, cells, merge**2, 3 * temporal * size**2]."""
        t, m, p = self.temporal, self.merge, self.size
        parts = frames.reshape(len(frames) // t, t, 3, rows, m, p, columns, m, p)
        ordered = parts.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return ordered.reshape(len(parts), rows * columns, m * m, 3 * t * p * p)


@dataclass(frozen=True, slots=True)
class PatchImage:
    """Graph: `Patches.inputs` of one picture -> features [1, cells, C].

    A picture is resized to multiples of a cell with `min_pixels` to `max_pixels` in all, its shape
    nearly kept; `processing` has the steps around that. One that is thinner than a cell is enlarged
    first, as `sizing` says: "plain" not at all; "widened" one side after the other, as PaddleOCR-VL
    does; "grown" both at once, as GLM does, whose limits are of `Patches.temporal` frames. With
    "filled" every picture is made as large as `max_pixels` allows, rounded down, as Gemma 4 does.

    `before` and `after` are what a prompt has around its tokens.
    """

    kind: Literal["patches"]
    processing: ImageProcessing
    patches: Patches
    min_pixels: int
    max_pixels: int
    sizing: Sizing = "plain"
    before: str = ""
    after: str = ""

    def prepare(self, image: Image.Image, token: str) -> Media:
        """Make an RGB picture ready; `token` is the text of an image token.

        Raises:
            ImageError: the picture is too long and narrow, or has too many patches.
        """
        fitted = self._fit(image)
        height, width = fitted.shape[:2]
        values = pixel_values(fitted, self.processing)
        frames = np.broadcast_to(values, (self.patches.temporal, *values.shape))
        cells = self.patches.cells_of(height, width)
        tokens = len(cells.index)
        return Media(
            kind="image",
            inputs=self.patches.inputs(frames),
            replacement=f"{self.before}{token * tokens}{self.after}",
            tokens=tokens,
            digest=image_hash(image),
            cells=cells,
            blocks=(self.patches.block(height, width, np.zeros(1, np.int64)),),
        )

    def view(self, image: Image.Image) -> Image.Image:
        """The whole picture, resized as the model sees it."""
        return Image.fromarray(self._fit(image))

    def _fit(self, image: Image.Image) -> NDArray[np.uint8]:
        name = f"image of {image.width} x {image.height}"
        height, width = self._size(image.height, image.width, name)
        check_size((width, height), f"{name}, resized")
        limit = MAX_PATCHES * self.patches.size**2
        if height * width > limit:
            raise ImageError(
                f"{name}: expected at most {limit / 1e6:.1f} megapixels for this model, found "
                f"{height * width / 1e6:.1f}; scale the image down first"
            )
        return fit(image, replace(self.processing, resize=(height, width)))

    def _size(self, height: int, width: int, name: str) -> tuple[int, int]:
        cell, limits = self.patches.cell, (self.min_pixels, self.max_pixels)
        if self.sizing == "filled":
            return filled_size(height, width, cell, self.max_pixels)
        if self.sizing == "grown":
            return grown_size(self.patches, self.patches.temporal, (height, width), limits, name)
        if self.sizing == "widened":
            if height < cell:
                height, width = cell, round(width * cell / height)
            if width < cell:
                height, width = round(height * cell / width), cell
        check_ratio(height, width, name)
        return smart_size(height, width, cell, *limits)


def grown_size(
    patches: Patches, count: int, size: tuple[int, int], limits: tuple[int, int], name: str
) -> tuple[int, int]:
    """(height, width) of each of `count` frames, whose limits are for all of them together.

    Hugging Face's `smart_resize` for videos of Qwen3-VL, and for GLM's pictures.

    Raises:
        ImageError: they are too long and narrow.
    """
    (height, width), (least, most) = size, limits
    cell, group = patches.cell, patches.temporal
    if min(height, width) < cell:
        grow = max(cell / height, cell / width)
        height, width = int(height * grow), int(width * grow)
    check_ratio(height, width, name)
    rows, columns = round(height / cell), round(width / cell)
    pixels = round(count / group) * group * rows * columns * cell**2
    if pixels > most:
        shrink = math.sqrt(count * height * width / most)
        rows = max(1, math.floor(height / shrink / cell))
        columns = max(1, math.floor(width / shrink / cell))
    elif pixels < least:
        grow = math.sqrt(least / (count * height * width))
        rows, columns = math.ceil(height * grow / cell), math.ceil(width * grow / cell)
    return rows * cell, columns * cell


def filled_size(height: int, width: int, cell: int, most: int) -> tuple[int, int]:
    """(height, width) as multiples of `cell`, as large as `most` pixels allow in a picture's shape.

    Hugging Face's `get_aspect_ratio_preserving_size` for Gemma 4.
    """
    factor = math.sqrt(most / (height * width))
    rows, columns = (math.floor(factor * side / cell) for side in (height, width))
    longest = most // cell**2
    if rows == 0:
        rows, columns = 1, min(width // height, longest)
    elif columns == 0:
        rows, columns = min(height // width, longest), 1
    return rows * cell, columns * cell


def smart_size(
    height: int, width: int, cell: int, least: int, most: int, fewest: int = 0
) -> tuple[int, int]:
    """(height, width) as multiples of `cell` nearest to a picture's, `least` to `most` pixels.

    Hugging Face's `smart_resize` for Qwen2-VL; of LFM2-VL with `fewest` cells along a side, of
    pictures thinner than half of one, before limits count.
    """
    rows, columns = (max(fewest, round(side / cell)) for side in (height, width))
    if rows * columns * cell**2 > most:
        shrink = math.sqrt(height * width / most)
        rows = max(1, math.floor(height / shrink / cell))
        columns = max(1, math.floor(width / shrink / cell))
    elif rows * columns * cell**2 < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = math.ceil(height * grow / cell), math.ceil(width * grow / cell)
    return rows * cell, columns * cell


def check_ratio(height: float, width: float, name: str) -> None:
    """Refuse what is so long and narrow that Hugging Face refuses it."""
    if max(height, width) > MAX_RATIO * min(height, width):
        raise ImageError(
            f"{name}: expected one side at most {MAX_RATIO} times the other; crop it first"
        )


def window_slots(rows: int, columns: int, side: int) -> NDArray[np.int64]:
    """[windows, side**2]: the cells of each window, row by row; -1 beyond the edge."""
    cells = np.pad(
        np.arange(rows * columns).reshape(rows, columns),
        ((0, -rows % side), (0, -columns % side)),
        constant_values=-1,
    )
    down, across = (n // side for n in cells.shape)
    split = cells.reshape(down, side, across, side).transpose(0, 2, 1, 3)
    return split.reshape(down * across, side * side)


def _spread(array: NDArray[Any], slots: NDArray[np.int64]) -> NDArray[Any]:
    """[T, cells, merge**2, X] -> [T, windows, side**2 * merge**2, X], zeros in empty places."""
    frames, _, merged, width = array.shape
    spread = np.zeros((frames, *slots.shape, merged, width), array.dtype)
    spread[:, slots >= 0] = array[:, slots[slots >= 0]]
    return spread.reshape(frames, len(slots), -1, width)


def _positions(rows: int, columns: int, merge: int) -> NDArray[np.int64]:
    """[cells, merge**2, 2]: row and column of each patch."""
    grid = np.indices((rows * merge, columns * merge))
    split = grid.reshape(2, rows, merge, columns, merge).transpose(1, 3, 2, 4, 0)
    return np.ascontiguousarray(split.reshape(rows * columns, merge * merge, 2), np.int64)


def _interpolation(
    positions: NDArray[np.int64], sides: tuple[int, int], table: int, stretch: Stretch
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Places in a table x table square for each patch, and the share of each, see `Patches`.

    fp32 as in transformers, to the last bit.
    """
    taps, shares = [], []
    offsets = np.arange(-1, 3) if stretch == "cubic" else np.arange(2)
    for axis, size in enumerate(sides):
        along = positions[..., axis].astype(np.float32)
        if stretch == "corners":
            along = along * np.float32(table - 1) / np.float32(max(size - 1, 1))
        else:
            half = np.float32(0.5)
            along = (along + half) * np.float32(table) / np.float32(size) - half
        below = np.floor(along)[..., None]
        away = np.abs(along[..., None] - below - offsets.astype(np.float32))
        taps.append(np.clip(below.astype(np.int64) + offsets, 0, table - 1))
        shares.append(_keys(away) if stretch == "cubic" else np.maximum(1 - away, np.float32(0)))
    shape = (*positions.shape[:-1], len(offsets) ** 2)
    places = taps[0][..., :, None] * table + taps[1][..., None, :]
    weights = shares[0][..., :, None] * shares[1][..., None, :]
    return places.reshape(shape), weights.reshape(shape).astype(np.float32)


def _keys(away: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keys' cubic kernel (1981) with a = -0.75, at distances `away` of at most 2."""
    a = np.float32(-0.75)
    near = ((a + 2) * away - (a + 3)) * away * away + 1
    far = ((a * away - 5 * a) * away + 8 * a) * away - 4 * a
    return np.where(away <= 1, near, far)

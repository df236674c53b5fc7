"""Pictures of any size in lines of tokens (Pixtral, arXiv 2410.07073, and what reads its tower)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.errors import FormatError
from avl_plugins.graph_io import ORDER, PATCH_POSITIONS, WINDOW_MASK
from avl_runtime.vision.load.images import ImageError, check_size
from avl_runtime.vision.media import Media, image_hash
from avl_runtime.vision.patches import MASKED, MAX_PATCHES, Patches
from avl_runtime.vision.steps import ImageProcessing, fit, pixel_values


@dataclass(frozen=True, slots=True)
class LinedImage:
    """Graph: `Patches.inputs` of one picture -> features [1, cells, C].

    A picture that does not fit into `most` (height, width) is shrunk until it does, and its sides
    are then stretched to multiples of `step` pixels: of a cell, or of a patch. In the second case
    the last row and column of patches may make up no whole cell. They are seen by the others, and
    are no token: the rest of their cells is empty, and there are two more inputs for P places,

        mask [P], 0 at patches and MASKED elsewhere; order [cells] int64, where each whole cell lies
        among the P / merge**2.

    `between` is the text behind each line of tokens but the last, `behind` that behind the last.

    Raises:
        FormatError: sizes that no picture can be cut with.
    """

    kind: Literal["lines"]
    processing: ImageProcessing
    patches: Patches
    most: tuple[int, int]
    step: int
    between: str
    behind: str

    def __post_init__(self) -> None:
        if min(self.most) < 1 or self.step not in (self.patches.size, self.patches.cell):
            raise FormatError(
                f"image layout: expected pictures of some pixels, in steps of {self.patches.size} "
                f"or {self.patches.cell}, found at most {self.most} in steps of {self.step}"
            )

    @property
    def has_parts(self) -> bool:
        """Whether patches may lie in no whole cell, and the graph takes `mask` and `order`."""
        return self.step != self.patches.cell

    def prepare(self, image: Image.Image, token: str) -> Media:
        """Make an RGB picture ready; `token` is the text of an image token.

        Raises:
            ImageError: the picture has too many patches, or not a single cell.
        """
        fitted = self._fit(image)
        height, width = fitted.shape[:2]
        cells = self.patches.cells_of(height, width)
        rows, columns = cells.grid
        lines = [token * columns] * rows
        seen = columns * self.patches.cell / width, rows * self.patches.cell / height
        return Media(
            kind="image",
            inputs=self._inputs(pixel_values(fitted, self.processing)),
            replacement=self.between.join(lines) + self.behind,
            tokens=rows * columns,
            digest=image_hash(image),
            cells=replace(cells, seen=(0.0, 0.0, *seen)),
            size=(image.height, image.width),
        )

    def view(self, image: Image.Image) -> Image.Image:
        """What the tokens show, resized as the model sees it."""
        fitted = self._fit(image)
        cell = self.patches.cell
        height, width = (side // cell * cell for side in fitted.shape[:2])
        return Image.fromarray(fitted[:height, :width])

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in which a picture is read.

        Hugging Face's `get_resize_output_image_size` for Pixtral.
        """
        shrink = max(height / self.most[0], width / self.most[1])
        if shrink > 1:
            height, width = math.floor(height / shrink), math.floor(width / shrink)
        return -(-height // self.step) * self.step, -(-width // self.step) * self.step

    def _fit(self, image: Image.Image) -> NDArray[np.uint8]:
        name = f"image of {image.width} x {image.height}"
        height, width = self.size_of(image.height, image.width)
        check_size((width, height), f"{name}, resized")
        cell = self.patches.cell
        if min(height, width) < cell:
            raise ImageError(
                f"{name}: expected at least {cell} x {cell} pixels as the model sees it, found "
                f"{width} x {height}; crop or enlarge it first"
            )
        if self.patches.patches_of(height + cell - 1, width + cell - 1) > MAX_PATCHES:
            raise ImageError(
                f"{name}: expected at most {MAX_PATCHES * self.patches.size**2 / 1e6:.1f} "
                f"megapixels for this model, found {height * width / 1e6:.1f}; scale the image "
                "down first"
            )
        return fit(image, replace(self.processing, resize=(height, width)))

    def _inputs(self, values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        if not self.has_parts:
            return self.patches.inputs(values[None])
        cell, merged = self.patches.cell, self.patches.merge**2
        height, width = values.shape[1:]
        padded = np.pad(values, ((0, 0), (0, -height % cell), (0, -width % cell)))
        inputs = self.patches.inputs(padded[None])
        rows, columns = inputs[PATCH_POSITIONS].T
        held = (rows < height // self.patches.size) & (columns < width // self.patches.size)
        return {
            **inputs,
            WINDOW_MASK: np.where(held, 0.0, MASKED).astype(np.float32),
            ORDER: np.flatnonzero(held.reshape(-1, merged).all(1)),
        }

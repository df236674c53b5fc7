"""Pictures of one size: every picture becomes the same number of tokens (LLaVA 1.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from avl_plugins.errors import FormatError
from avl_plugins.graph_io import PIXELS
from avl_runtime.vision.media import Cells, Media, image_hash
from avl_runtime.vision.steps import ImageProcessing, fit, part_fitted, pixel_values

MAX_TOKENS = 1 << 20  # of one picture


@dataclass(frozen=True, slots=True)
class FixedImage:
    """Graph: pixel_values [1, 3, H, W] -> features [1, tokens, C].

    Raises:
        FormatError: tokens and grid do not fit each other.

    `tokens` exceeds rows x columns of `grid` by one where a class token comes first, and is one
    less where the first patch is left out. `before` and `after` are what a prompt has around them.
    """

    kind: Literal["fixed"]
    processing: ImageProcessing
    grid: tuple[int, int]
    tokens: int
    before: str = ""
    after: str = ""

    def __post_init__(self) -> None:
        shown = self.grid[0] * self.grid[1]
        if not 0 < self.tokens <= MAX_TOKENS or abs(self.tokens - shown) > 1:
            raise FormatError(
                f"image layout: expected a token for each cell, or one more or less, found "
                f"{self.tokens} for a grid of {self.grid[0]} x {self.grid[1]}"
            )

    def prepare(self, image: Image.Image, token: str) -> Media:
        """Make an RGB picture ready; `token` is the text of an image token.

        Raises:
            ImageError: the picture is too long and narrow to be resized.
        """
        values = pixel_values(fit(image, self.processing), self.processing)
        rows, columns = self.grid
        # Tokens end with the last cell; -1 is a class token, which shows none.
        cells = np.arange(rows * columns - self.tokens, rows * columns, dtype=np.int64)
        return Media(
            kind="image",
            inputs={PIXELS: values[None]},
            replacement=f"{self.before}{token * self.tokens}{self.after}",
            tokens=self.tokens,
            digest=image_hash(image),
            cells=Cells(self.grid, cells, part_fitted(image.size, self.processing)),
        )

    def view(self, image: Image.Image) -> Image.Image:
        """The part of a picture that the model sees, resized as it sees it."""
        return Image.fromarray(fit(image, self.processing))

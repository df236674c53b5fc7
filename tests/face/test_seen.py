"""Which part of a picture the cells of its tokens lie on, against what the model is shown."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from avl_runtime.vision.anyres import AnyresImage
from avl_runtime.vision.blended import BlendedImage, SquareImage
from avl_runtime.vision.fixed import FixedImage
from avl_runtime.vision.lines import LinedImage
from avl_runtime.vision.patches import Patches, PatchImage
from avl_runtime.vision.steps import ImageProcessing
from avl_runtime.vision.tiles import TiledImage

BARS = 0  # what lies around pictures; nothing in them is as dark
RESOLUTIONS = ((56, 56), (56, 112), (112, 56), (112, 112), (56, 168))


def steps(resize: int | tuple[int, int] | None, crop: tuple[int, int] | None) -> ImageProcessing:
    return ImageProcessing(True, resize, 2, crop, 1 / 255, None, None)


SQUARE = steps((56, 56), None)
PATCHES = Patches(14, 1, 2, None, None)
LAYOUTS = {
    "cropped": FixedImage("fixed", steps(56, (56, 56)), (4, 4), 16),
    "stretched": FixedImage("fixed", SQUARE, (4, 4), 17),
    "cut as it is": FixedImage("fixed", steps(None, (56, 56)), (4, 4), 16),
    "anyres": AnyresImage("anyres", SQUARE, RESOLUTIONS, 56, 4),
    "anyres, cropped": AnyresImage("anyres", steps(56, (56, 56)), RESOLUTIONS, 56, 4),
    "blended": BlendedImage("blended", SQUARE, RESOLUTIONS, 56, 4, 2),
    "square": SquareImage("square", SQUARE, (BARS, BARS, BARS), 4),
    "lines": LinedImage("lines", SQUARE, PATCHES, (128, 128), 14, "", ""),
    "patches": PatchImage("patches", SQUARE, PATCHES, 28 * 28, 112 * 112),
    "tiles": TiledImage("tiles", SQUARE, (56, 56), (1, 6), (2, 2), ("", "")),
}


@pytest.mark.parametrize("size", [(100, 100), (200, 90), (61, 150), (320, 70), (40, 52)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_cells_lie_where_the_picture_is_seen(name: str, size: tuple[int, int]) -> None:
    """A picture whose red and green tell the place: each pixel of a view must tell its own."""
    layout, (width, height) = LAYOUTS[name], size
    across, down = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    picture = np.stack([55 + 200 * across / width, 55 + 200 * down / height, 255 + 0 * down], -1)
    image = Image.fromarray(picture.round().astype(np.uint8))
    cells = layout.prepare(image, "<image>").cells
    view = np.asarray(layout.view(image)).astype(np.float64)
    left, top, right, bottom = cells.seen
    rows, columns = view.shape[:2]
    x = left + (np.arange(columns) + 0.5) / columns * (right - left)
    y = top + (np.arange(rows) + 0.5) / rows * (bottom - top)
    x, y = np.meshgrid(x, y)
    # A pixel at an edge is mixed of the picture and what is around it.
    edge = 1.5 * max((right - left) / columns, (bottom - top) / rows, 1 / min(size))
    inside = (np.minimum(x, y) > edge) & (np.maximum(x, y) < 1 - edge)
    outside = (np.minimum(x, y) < -edge) | (np.maximum(x, y) > 1 + edge)
    assert inside.any()
    found_x, found_y = (view[..., 0] - 55) / 200, (view[..., 1] - 55) / 200
    for found, wanted, length in ((found_x, x, width), (found_y, y, height)):
        most = 1.0 / length + 0.6 * (right - left if found is found_x else bottom - top) / min(
            rows, columns
        )
        assert np.abs(found - wanted)[inside].max() < most + 2 / 200
    assert (view[outside] == BARS).all()

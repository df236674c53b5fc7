"""Every mode of Pillow in odd sizes, and every EXIF orientation, as transformers has them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image as theirs

from avl_runtime.vision.load.images import load_image

SIZES = ((1, 1), (1, 7), (7, 900), (33, 65))
OPAQUE = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16B", "RGBX")
CLEAR = ("LA", "PA", "RGBA", "RGBa", "La")


def noise(size: tuple[int, int], bands: int) -> Image.Image:
    rng = np.random.default_rng(size[0] * bands)
    shape = (size[1], size[0], bands)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", OPAQUE)
def test_modes_without_transparency(mode: str, size: tuple[int, int]) -> None:
    """Pictures of 8 bits, converted: files of more bits are in test_deep_pictures."""
    image = noise(size, 3).convert(mode)
    np.testing.assert_array_equal(np.asarray(load_image(image)), np.asarray(theirs(image)))
    if mode in ("I", "F", "I;16", "I;16B"):
        return
    for form in ("PNG", "TIFF", "JPEG", "WEBP", "BMP", "GIF", "JPEG2000"):
        file = io.BytesIO()
        try:
            image.save(file, form)
            expected = np.asarray(theirs(Image.open(io.BytesIO(file.getvalue()))))
        except (OSError, KeyError, ValueError):
            continue  # no such mode in this format; Pillow 11 reads no YCbCr from a TIFF of its own
        np.testing.assert_array_equal(np.asarray(load_image(file)), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", CLEAR)
def test_modes_with_transparency_are_laid_over_white(mode: str, size: tuple[int, int]) -> None:
    base = noise(size, 4) if mode.startswith("R") else noise(size, 4).convert("LA")
    image = base if base.mode == mode else base.convert(mode)
    seen = image.convert(mode.upper()).convert("RGBA")
    alpha = np.asarray(seen)[..., 3:].astype(float) / 255
    over = np.asarray(seen)[..., :3] * alpha + 255 * (1 - alpha)
    found = np.asarray(load_image(image)).astype(float)
    assert np.abs(found - over).max() <= 1


@pytest.mark.parametrize("turn", range(9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_orientations(tmp_path: Path, turn: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{form.lower()}"
    noise((20, 30), 3).save(path, form, exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(theirs(str(path))))

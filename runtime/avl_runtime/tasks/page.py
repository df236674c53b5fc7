"""Pages of text to read: lines of rendered letters and lines of real handwritten digits.

The digits are scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" images
(8 x 8 pixels, CC BY 4.0). Every sixth image belongs to the held-out split.
"""

from __future__ import annotations

import functools
import random
import string

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFont

from avl_runtime.machine.installation import need
from avl_runtime.tasks.scene import IMAGE_SIZE, background

LINES = 4
LINE_HEIGHT = IMAGE_SIZE // LINES  # 3 patches
CHARACTER_WIDTH = 28  # 2 patches
GLYPH = 14  # pixels: one patch


@functools.cache
def _digits(held_out: bool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    need("eval", "scikit-learn", what_for="handwritten digits")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    index = np.arange(len(labels))
    chosen = (index % 6 == 0) == held_out
    return images[chosen].reshape(-1, 8, 8), labels[chosen]


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def draw_page(
    rng: random.Random, *, held_out: bool, lengths: tuple[int, ...] = (5, 6)
) -> tuple[Image.Image, list[str]]:
    """Draw `LINES` lines of `lengths` characters each; returns the page and its lines."""
    page = background(rng)
    lines = [
        _digit_line(rng, page, row, rng.choice(lengths), held_out)
        if rng.random() < 0.5
        else _letter_line(rng, page, row, rng.choice(lengths))
        for row in range(LINES)
    ]
    return page, lines


def _centres(rng: random.Random, row: int, length: int) -> list[tuple[int, int]]:
    """Glyph centres near the middle of a patch, the line starting one patch later at times."""
    room = IMAGE_SIZE - CHARACTER_WIDTH * length
    indent = (GLYPH * rng.randint(0, 1) if room else 0) + rng.randint(-2, 2)
    y = row * LINE_HEIGHT + 8 + GLYPH * rng.randint(0, 1) + rng.randint(-1, 2)
    return [
        (
            max(7, 8 + indent + CHARACTER_WIDTH * i + rng.randint(-1, 1)),
            max(7, y + rng.randint(-1, 1)),
        )
        for i in range(length)
    ]


def _letter_line(rng: random.Random, page: Image.Image, row: int, length: int) -> str:
    draw = ImageDraw.Draw(page)
    font = _font(rng.randint(15, 17))
    shade = rng.randint(0, 60)
    text = "".join(rng.choice(string.ascii_uppercase) for _ in range(length))
    for character, centre in zip(text, _centres(rng, row, length), strict=True):
        draw.text(centre, character, fill=(shade, shade, shade), font=font, anchor="mm")
    return text


def _digit_line(
    rng: random.Random, page: Image.Image, row: int, length: int, held_out: bool
) -> str:
    images, labels = _digits(held_out)
    text = ""
    for x, y in _centres(rng, row, length):
        index = rng.randrange(len(labels))
        ink = Image.fromarray((255 - images[index] * 15.9).astype(np.uint8))
        ink = ink.resize((GLYPH, GLYPH), Image.Resampling.BICUBIC).convert("RGB")
        corner = (x - GLYPH // 2, y - GLYPH // 2)
        under = page.crop((*corner, corner[0] + GLYPH, corner[1] + GLYPH))
        page.paste(ImageChops.darker(under, ink), corner)
        text += str(labels[index])
    return text

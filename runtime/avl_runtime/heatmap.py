"""Pictures of what a policy kept: core, secondary and minor patches over an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from avl_plugins.errors import AvlError
from avl_runtime.results import Placement
from avl_runtime.spans import Span, spans
from avl_runtime.vision import Cells

CORE = (255, 138, 0)
SECONDARY = (0, 132, 255)
INK = (32, 36, 42)
FAINT = (108, 116, 126)
PAPER = (255, 255, 255)
DARK = (20, 23, 28)

PANEL = 264  # pixels, about; a panel is a whole number of pixels a patch
GAP = 16
LINE = 22


class HeatmapError(AvlError):
    """There is nothing to draw."""


def draw(
    images: Sequence[Image.Image],
    placements: Sequence[Placement],
    visuals: Sequence[Cells],
    steps: int,
    title: str = "",
) -> Image.Image:
    """One row an image: the image, then what is kept of it in each range of decode steps.

    Orange is the share of layers in which a patch is core, blue in which it is secondary; the
    darker, the more layers have dropped it.

    Args:
        images: what the model sees of the pictures and videos of the whole conversation
            (`Processor.view`), in prompt order.
        placements, visuals: of a `Result`.
        steps: decode steps in all (generated tokens less one).
        title: a line above, cut where it is too long.

    Raises:
        HeatmapError: no image, no placement, or not as many images as the conversation has.
    """
    expected = sum(len(cells.index) for cells in visuals)
    found = placements[0].core.shape[1] if placements else 0
    if not images or len(images) != len(visuals) or not expected or found != expected:
        raise HeatmapError(
            f"expected {len(visuals)} images of {expected} image tokens in all, at least one, "
            f"found {len(images)} images and {found} tokens; draw the images of the whole "
            "conversation"
        )
    rows = [
        _row(image, spans(placements, visuals, number, steps))
        for number, image in enumerate(images)
    ]
    head = GAP + (LINE + GAP // 2 if title else 0)
    width = max(max(row.width for row in rows) + 2 * GAP, 640)
    height = head + sum(row.height + GAP for row in rows) + LINE + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((GAP, GAP), _shorten(title, _font(17), width - 2 * GAP), INK, _font(17))
    top = head
    for row in rows:
        sheet.paste(row, (GAP, top))
        top += row.height + GAP
    _legend(pen, (GAP, top))
    return sheet


def _row(image: Image.Image, parts: list[Span]) -> Image.Image:
    patch_rows, patch_columns = parts[0].core.shape
    cell = max(4, round(PANEL / max(patch_rows, patch_columns)))
    size = (patch_columns * cell, patch_rows * cell)
    large = image.resize(size, Image.Resampling.BICUBIC)
    panels = [("what the model sees", large)]
    panels += [(part.caption, _overlay(large, part, cell)) for part in parts]
    row = Image.new("RGB", (len(panels) * (size[0] + GAP) - GAP, size[1] + LINE), PAPER)
    pen = ImageDraw.Draw(row)
    for number, (caption, panel) in enumerate(panels):
        left = number * (size[0] + GAP)
        row.paste(panel, (left, LINE))
        pen.text((left, 1), caption, INK if number else FAINT, _font(14))
    return row


def _overlay(image: Image.Image, part: Span, cell: int) -> Image.Image:
    """Tint an image patch by patch, stronger along each patch's edge so that its inside shows."""
    core, secondary = _large(part.core, cell), _large(part.secondary, cell)
    pixels = np.asarray(image, np.float64)
    minor = np.clip(1 - core - secondary, 0, 1)
    grey = pixels.mean(2, keepdims=True)
    shown = pixels * (1 - minor) + (0.22 * grey + 0.78 * np.array(DARK)) * minor
    edge = np.ones((cell, cell))
    width = max(1, cell // 12)
    edge[width:-width, width:-width] = 0
    strength = 0.28 + 0.5 * np.tile(edge, part.core.shape)[:, :, None]
    shown = _tint(shown, CORE, strength * core)
    shown = _tint(shown, SECONDARY, strength * secondary)
    return Image.fromarray(shown.round().clip(0, 255).astype(np.uint8))


def _tint(
    pixels: NDArray[np.float64], colour: tuple[int, int, int], share: NDArray[np.float64]
) -> NDArray[np.float64]:
    mixed: NDArray[np.float64] = pixels * (1 - share) + np.array(colour, np.float64) * share
    return mixed


def _large(shares: NDArray[np.float64], cell: int) -> NDArray[np.float64]:
    """[rows, columns] to pixels [rows * cell, columns * cell, 1]."""
    return shares.repeat(cell, 0).repeat(cell, 1)[:, :, None]


def _legend(pen: ImageDraw.ImageDraw, place: tuple[int, int]) -> None:
    left, top = place
    entries = (
        (CORE, "core: read at every step"),
        (SECONDARY, "secondary: read at refresh steps"),
        (DARK, "minor: dropped"),
    )
    for colour, text in entries:
        pen.rounded_rectangle((left, top + 3, left + 14, top + 17), 3, fill=colour)
        pen.text((left + 21, top + 2), text, FAINT, _font(14))
        left += 21 + int(_font(14).getlength(text)) + 24


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    line = " ".join(text.split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

"""Pictures of what a policy kept: core, secondary and dropped patches beside an image."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from avl_plugins.errors import AvlError
from avl_runtime.generate.results import Placement
from avl_runtime.show.spans import A_VL, Early, Span, early, spans
from avl_runtime.vision import Cells

Colour = tuple[int, int, int]

CORE = (255, 138, 0)
SECONDARY = (0, 132, 255)
INK = (32, 36, 42)
FAINT = (92, 100, 110)
PAPER = (255, 255, 255)
DARK = (20, 23, 28)
WITHHELD = (104, 84, 128)  # what the decoder was never given
STOPPED = (0, 168, 150)  # a corner of what was dropped between layers

PANEL = 384  # pixels, about; a panel is a whole number of pixels a patch
GAP = 16
LINE = 24
WORDS, SMALL = 17, 15  # heights of letters, pixels
ANSWER = 3  # lines of it at most
FAINTEST = 0.4  # of its colour has what is kept in a single layer of many
CORNER = 0.4  # of a patch's side
SHADE = 0.15  # of its colour keeps a patch where the picture is black
SCALE = 260  # pixels of a legend's scale


class HeatmapError(AvlError):
    """There is nothing to draw."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Of one picture's tokens, over all layers and decode steps: the mean share in each place."""

    core: float
    secondary: float
    places: Sequence[str] = A_VL

    def __str__(self) -> str:
        kept = f"kept {self.core + self.secondary:.0%}"
        if len(self.places) < len(A_VL):
            return kept
        active, parked, _ = self.places
        return f"{kept}: {active} {self.core:.0%}, {parked} {self.secondary:.0%}"


def draw(
    images: Sequence[Image.Image],
    placements: Sequence[Placement],
    visuals: Sequence[Cells],
    steps: int,
    title: str = "",
    answer: str = "",
    places: Sequence[str] = A_VL,
    dropped: NDArray[np.integer] | None = None,
) -> Image.Image:
    """One row an image: the image, then what was kept of it while the answer was made.

    A patch is orange if most of what was kept of it was core, blue if secondary, and the brighter,
    the more layers kept it; the picture shows through in the patch's own colour. The scales below
    hold every colour that there can be. A patch of which the decoder was given no token is violet,
    and one whose tokens were dropped between layers has a corner marked; what is dark and neither
    was read by all layers and dropped from their caches.

    Args:
        images: what the model sees of the pictures and videos of the whole conversation
            (`Processor.view`), in prompt order.
        placements, visuals: of a `Result`.
        steps: decode steps in all (generated tokens less one).
        title: a line above, cut where it is too long.
        answer: what the model said, under the title, cut after three lines.
        places: what the policy calls active, parked and dropped tokens (`Policy.places`); where it
            parks none there is one colour.
        dropped: `dropped_before` of a `Result`; None: nothing was, until the prompt was read.

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
    layers = len(placements[0].core)
    rows, gone = [], [early(dropped, visuals, number) for number in range(len(images))]
    for number, image in enumerate(images):
        (part,) = spans(placements, visuals, number, steps, most=1)
        kept = replace(shares(placements, visuals, number, steps), places=tuple(places))
        rows.append(_row(image, part, kept, layers, gone[number]))
    width = max(max(row.width for row in rows) + 2 * GAP, 2 * (PANEL + GAP) + GAP)
    head = [(one, INK) for one in _wrapped(title, width - 2 * GAP, 1)]
    head += [(one, FAINT) for one in _wrapped(answer, width - 2 * GAP, ANSWER)]
    top = GAP + LINE * len(head) + (GAP // 2 if head else 0)
    keys = [
        (colour, marked, told)
        for colour, marked, told, there in (
            (WITHHELD, False, "dropped before the decoder", any(g.withheld.any() for g in gone)),
            (DARK, True, "dropped between layers", any(g.stopped.any() for g in gone)),
        )
        if there
    ]
    height = top + sum(row.height + GAP for row in rows) + (3 + len(keys)) * LINE + GAP // 2
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (line, colour) in enumerate(head):
        pen.text((GAP, GAP + number * LINE), line, colour, _font(WORDS))
    for row in rows:
        sheet.paste(row, (GAP, top))
        top += row.height + GAP
    _legend(pen, (GAP, top), layers, places[:-1])
    for number, (colour, marked, told) in enumerate(keys):
        below = top + (3 + number) * LINE
        box = (GAP, below + 2, GAP + LINE, below + 19)
        pen.rectangle(box, fill=colour)
        if marked:
            _corner(pen, box)
        pen.text((2 * GAP + LINE, below), told, FAINT, _font(SMALL))
    return sheet


def shares(
    placements: Sequence[Placement], visuals: Sequence[Cells], number: int, steps: int
) -> Shares:
    """What was kept of one picture: of its tokens, not of its patches, which several may show.

    Args:
        placements, visuals, number, steps: as `spans` takes them.
    """
    first = sum(len(cells.index) for cells in visuals[:number])
    tokens = slice(first, first + len(visuals[number].index))
    starts = [max(1, placement.step) for placement in placements]
    ends = [*(start - 1 for start in starts[1:]), steps]
    spent = [max(0, end - start + 1) for start, end in zip(starts, ends, strict=True)]
    if not any(spent):  # one token in all: what prefill left
        spent[0] = 1
    core = [float(placement.core[:, tokens].mean()) for placement in placements]
    parked = [float(placement.parked[:, tokens].mean()) for placement in placements]
    return Shares(float(np.average(core, weights=spent)), float(np.average(parked, weights=spent)))


def ramp(colour: Colour, layers: int) -> NDArray[np.uint8]:
    """[layers + 1, 3]: the colours of what none, one, … and all layers kept."""
    share = np.arange(layers + 1)[:, None] / layers
    strength = np.where(share > 0, FAINTEST + (1 - FAINTEST) * share, 0)
    mixed = np.array(DARK) * (1 - strength) + np.array(colour) * strength
    steps: NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return steps


def _row(image: Image.Image, part: Span, kept: Shares, layers: int, gone: Early) -> Image.Image:
    patch_rows, patch_columns = part.core.shape
    cell = max(4, round(PANEL / max(patch_rows, patch_columns)))
    size = (patch_columns * cell, patch_rows * cell)
    large = image.resize(size, Image.Resampling.BICUBIC)
    panels = (("what the model sees", large), (str(kept), _map(large, part, cell, layers, gone)))
    font = _font(SMALL)
    pitch = max(size[0], PANEL) + GAP
    wide = pitch + max(size[0], round(font.getlength(panels[1][0])) + 1)
    row = Image.new("RGB", (wide, size[1] + LINE), PAPER)
    pen = ImageDraw.Draw(row)
    for number, (caption, panel) in enumerate(panels):
        row.paste(panel, (number * pitch, LINE))
        pen.text((number * pitch, 1), caption, INK if number else FAINT, font)
    return row


def _map(image: Image.Image, part: Span, cell: int, layers: int, gone: Early) -> Image.Image:
    """Patches in the colours of the scales, with the picture printed into those that are kept."""
    kept = np.rint((part.core + part.secondary).clip(0, 1) * layers).astype(np.int64)
    mostly_core = part.core >= part.secondary
    scales = np.stack([ramp(SECONDARY, layers), ramp(CORE, layers)])
    colours = scales[mostly_core.astype(np.int64), kept].astype(np.float64)
    colours[gone.withheld] = WITHHELD
    light = np.asarray(image.convert("L"), np.float64)
    light /= max(1.0, float(np.percentile(light, 95)))  # a page's paper is white, though it be grey
    shade = SHADE + (1 - SHADE) * light.clip(0, 1)
    edge = np.ones((cell, cell), np.bool_)
    width = max(1, cell // 14)
    edge[width:-width, width:-width] = False
    plain = np.tile(edge, part.core.shape) | (_large(kept, cell) == 0)
    shade = np.where(plain, 1.0, shade)
    shown = _large(colours, cell) * shade[:, :, None]
    found = Image.fromarray(shown.round().clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(found)
    for row, column in zip(*np.nonzero(gone.stopped), strict=True):
        left, top = int(column) * cell, int(row) * cell
        _corner(pen, (left, top, left + cell - 1, top + cell - 1))
    return found


def _corner(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    """A triangle at the lower left."""
    left, _, right, bottom = box
    side = max(1, round((right - left) * CORNER))
    pen.polygon([(left, bottom - side), (left + side, bottom), (left, bottom)], STOPPED)


def _large(values: NDArray[np.float64] | NDArray[np.int64], cell: int) -> NDArray[np.float64]:
    """[rows, columns, ...] to pixels [rows * cell, columns * cell, ...]."""
    return values.repeat(cell, 0).repeat(cell, 1).astype(np.float64)


def _legend(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], layers: int, kept: Sequence[str]
) -> None:
    """A scale a colour, from no layer to all of them."""
    left, top = place
    font = _font(SMALL)
    told = (("read at every step", CORE), ("read at refreshes", SECONDARY))
    names = [(f"{name}: {when}", colour) for name, (when, colour) in zip(kept, told, strict=False)]
    begin = left + max(round(font.getlength(name)) for name, _ in names) + GAP
    edges = [begin + round(number * SCALE / (layers + 1)) for number in range(layers + 2)]
    for row, (name, colour) in enumerate(names):
        pen.text((left, top + row * LINE), name, FAINT, font)
        for number, step in enumerate(ramp(colour, layers).tolist()):
            box = (
                edges[number],
                top + row * LINE + 2,
                edges[number + 1] - 1,
                top + row * LINE + 19,
            )
            pen.rectangle(box, fill=tuple(step))
    marked = sorted({0, layers, *((layers // 2,) if layers > 3 else ())})
    shown = range(layers + 1) if layers < 9 else marked
    for number in shown:
        middle = (edges[number] + edges[number + 1]) // 2
        pen.text((middle, top + len(names) * LINE), str(number), FAINT, font, anchor="ma")
    pen.text((edges[-1] + GAP, top + LINE // 2), f"kept in k of {layers} layers,", FAINT, font)
    pen.text((edges[-1] + GAP, top + LINE // 2 + LINE), "0: dropped in all", FAINT, font)


def _wrapped(text: str, width: int, most: int) -> list[str]:
    """Lines of at most `width` pixels, the last one cut where there would be more than `most`."""
    font, left = _font(WORDS), _plain(" ".join(text.split()))
    lines: list[str] = []
    while left and len(lines) < most:
        if len(lines) == most - 1:
            lines.append(_shorten(left, font, width))
            break
        end = _fitting(left, font, width)
        space = left.rfind(" ", 1, end + 1) if end < len(left) else end
        end = space if space > 0 else end
        lines.append(left[:end])
        left = left[end:].lstrip()
    return lines


def _plain(text: str) -> str:
    """Letters without accents, of which Pillow's own font has none."""
    parted = unicodedata.normalize("NFKD", text)
    return "".join(one for one in parted if not unicodedata.combining(one))


def _shorten(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(line[: 4 * width]) <= width and len(line) <= 4 * width:
        return line
    room = width - round(font.getlength("…"))
    return line[: _fitting(line, font, room)].rstrip() + "…"


def _fitting(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> int:
    """How many characters of a line fit, at least one: found by halving."""
    low, high = 1, min(len(line), max(1, width))  # no letter is narrower than a pixel
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(line[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

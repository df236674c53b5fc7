"""Scenes of coloured shapes on a 3 x 3 grid, described (caption) and asked about (vqa)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

IMAGE_SIZE = 168  # pixels; 12 x 12 patches of 14
CELL = IMAGE_SIZE // 3

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 40),
    "purple": (150, 60, 190),
    "orange": (240, 140, 30),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene; `cell` counts the 3 x 3 grid in reading order."""

    color: str
    shape: str
    cell: int

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3

    @property
    def place(self) -> str:
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


def background(rng: random.Random) -> Image.Image:
    """A blank image in a light colour."""
    red, green, blue = (rng.randint(225, 255) for _ in range(3))
    return Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (red, green, blue))


def draw_scene(
    rng: random.Random, counts: tuple[int, ...], *, distinct_colors: bool = False
) -> tuple[Image.Image, list[Thing]]:
    """Draw one of `counts` objects, no two alike in both colour and shape; in reading order.

    With `distinct_colors` no two have the same colour (at most six objects).
    """
    image = background(rng)
    draw = ImageDraw.Draw(image)
    looks = [(color, shape) for color in COLORS for shape in SHAPES]
    count = rng.choice(counts)
    cells = sorted(rng.sample(range(9), count))
    chosen = rng.sample(looks, count)
    if distinct_colors:
        chosen = [(color, rng.choice(SHAPES)) for color in rng.sample(list(COLORS), count)]
    things = [Thing(color, shape, cell) for cell, (color, shape) in zip(cells, chosen, strict=True)]
    for thing in things:
        x = thing.column * CELL + CELL // 2 + rng.randint(-4, 4)
        y = thing.row * CELL + CELL // 2 + rng.randint(-4, 4)
        _draw_shape(draw, thing, x, y, rng.randint(11, 14))
    return image, things


def _draw_shape(draw: ImageDraw.ImageDraw, thing: Thing, x: int, y: int, r: int) -> None:
    color = COLORS[thing.color]
    box = (x - r, y - r, x + r, y + r)
    if thing.shape == "circle":
        draw.ellipse(box, fill=color)
    elif thing.shape == "square":
        draw.rectangle(box, fill=color)
    elif thing.shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=color)
    elif thing.shape == "cross":
        arm = r // 3
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=color)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=color)
    else:
        draw.ellipse(box, outline=color, width=max(4, r // 3))


def caption(things: list[Thing]) -> str:
    """Every object with colour, shape and place, in reading order."""
    listed = ", ".join(f"{thing.name} at {thing.place}" for thing in things)
    return f"there are {len(things)} objects: {listed}."


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its short answer and the one object it is about, if it is one."""

    prompt: str
    answer: str
    about: Thing | None


def question(rng: random.Random, things: list[Thing]) -> Question:
    """One question on an attribute, a count or a relation.

    Attributes and relations name objects by a colour that no other object of the scene has.
    """
    colors = [thing.color for thing in things]
    unique = [thing for thing in things if colors.count(thing.color) == 1]
    kind = rng.choice(("attribute", "count", "relation"))
    if kind == "relation" and len(unique) > 1:
        return _relation(rng, unique)
    if kind == "attribute" and unique:
        thing = rng.choice(unique)
        if rng.random() < 0.5:
            return Question(f"What shape is the {thing.color} object?", thing.shape, thing)
        return Question(f"Where is the {thing.color} object?", thing.place, thing)
    return Question("How many objects are there?", str(len(things)), None)


def _relation(rng: random.Random, things: list[Thing]) -> Question:
    """Which of two objects comes first on an axis on which they differ."""
    one, two = rng.sample(things, 2)
    vertical = one.column == two.column or (one.row != two.row and rng.random() < 0.5)
    if vertical:
        word = rng.choice(("above", "below"))
        first = (one.row < two.row) == (word == "above")
    else:
        word = rng.choice(("left", "right"))
        first = (one.column < two.column) == (word == "left")
    asked = f"What object is {word}, the {one.color} or the {two.color}?"
    return Question(asked, one.color if first else two.color, None)

"""What every candidate is asked: pictures and token ids of exactly the sizes wanted."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from avl_runtime.bench.errors import BenchError
from avl_runtime.package.manifest import Manifest
from avl_runtime.prompts.processor import Processor
from avl_runtime.vision import ImageLayout, Media

MOST_PICTURES = 64
SIDES = (336, 448, 672, 896, 1344)  # pixels of pictures to try
TEXT_TOKENS = 64  # unless the chat template alone has more


@dataclass(frozen=True, slots=True)
class Workload:
    """One request, the same for all.

    Attributes:
        images: noise, no two alike.
        input_ids: the prompt, a visual token's id at each of its tokens.
        visual: how many of those there are.
        media: what they are of.
    """

    images: tuple[Image.Image, ...]
    input_ids: tuple[int, ...]
    visual: int
    new_tokens: int
    batch: int

    @property
    def before(self) -> int:
        """Text tokens before the first visual one; all of them without any."""
        return self._first if self.visual else len(self.input_ids)

    _first: int = 0
    media: tuple[Media, ...] = ()


def make_workload(
    processor: Processor,
    manifest: Manifest,
    visual_tokens: int | None,
    text_tokens: int | None,
    new_tokens: int,
    batch: int,
) -> Workload:
    """Pictures that give `visual_tokens`, and a prompt of so many tokens.

    Args:
        visual_tokens: None for one picture; 0 for none.
        text_tokens: those of the chat template included; None for TEXT_TOKENS.

    Raises:
        BenchError: no pictures give that many tokens, the template alone has more text, or the
            model's context is too short.
    """
    images = pictures(processor, manifest, visual_tokens)
    base = processor.encode("x", images)
    visual = int(base.image_mask.sum())
    least = len(base.input_ids) - visual
    wanted = max(TEXT_TOKENS, least) if text_tokens is None else text_tokens
    if wanted < least:
        raise BenchError(
            f"--text-tokens: expected at least {least}, which this prompt has without any text "
            f"of its own, found {wanted}"
        )
    total, room = visual + wanted + new_tokens, manifest.dims.max_positions
    if total > room:
        raise BenchError(
            f"expected at most {room} tokens in all (the model's context), found {visual} visual, "
            f"{wanted} of text and {new_tokens} new; ask for fewer"
        )
    # Behind the last picture, where a question stands, or else behind the first token.
    place = int(np.flatnonzero(base.image_mask)[-1]) + 1 if visual else min(1, len(base.input_ids))
    filler = random.Random(0).choices(ordinary_tokens(processor, manifest), k=wanted - least)
    ids = base.input_ids.tolist()
    first = int(base.image_mask.argmax()) if visual else 0
    return Workload(
        tuple(images),
        (*ids[:place], *filler, *ids[place:]),
        visual,
        new_tokens,
        batch,
        first,
        base.media,
    )


def ordinary_tokens(processor: Processor, manifest: Manifest) -> list[int]:
    """Ids of the vocabulary that are not special."""
    tokenizer = processor.tokenizer
    special = set(tokenizer.get_added_tokens_decoder()) | set(manifest.visual_tokens)
    rows = manifest.embedding.shape[0]
    return sorted(i for i in tokenizer.get_vocab().values() if i < rows and i not in special)


def pictures(
    processor: Processor, manifest: Manifest, visual_tokens: int | None
) -> list[Image.Image]:
    """Pictures of noise that have `visual_tokens` together; as few as possible.

    Raises:
        BenchError: none do.
    """
    if visual_tokens is None:
        return [noise((SIDES[0], SIDES[0]), 0)]
    known: dict[tuple[int, tuple[int, int]], int] = {}
    given = set()
    for count in range(1, min(visual_tokens, MOST_PICTURES) + 1):
        share, rest = divmod(visual_tokens, count)
        layout = manifest.image.layout_among(count)
        for size in _sizes(layout, share):
            key = (id(layout), size)
            if key not in known:
                placeholder = manifest.image.placeholder
                known[key] = layout.prepare(noise(size, 0), placeholder).tokens
            given.add(known[key])
            if not rest and known[key] == share:
                return [noise(size, seed) for seed in range(count)]
    if visual_tokens == 0:
        return []
    found = ", ".join(map(str, sorted(given)))
    raise BenchError(
        f"--visual-tokens: expected a number that pictures of the {manifest.family} family give "
        f"(one gives {found}), found {visual_tokens}; up to {MOST_PICTURES} alike are shown"
    )


def _sizes(layout: ImageLayout, tokens: int) -> Iterator[tuple[int, int]]:
    """Sizes (width, height) worth trying for a picture of `tokens` tokens."""
    patches = getattr(layout, "patches", None)
    if patches is None:
        yield from ((side, side) for side in SIDES)
        yield from ((SIDES[2], SIDES[0]), (SIDES[0], SIDES[2]), (1008, SIDES[0]))
        return
    # As near to a square as the number allows.
    rows = next((r for r in range(math.isqrt(tokens), 0, -1) if tokens % r == 0), 0)
    if rows and tokens // rows <= 8 * rows:
        yield (tokens // rows * patches.cell, rows * patches.cell)


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    """A picture (width, height) of coarse noise."""
    rng = np.random.default_rng(seed)
    width, height = size
    blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BILINEAR)

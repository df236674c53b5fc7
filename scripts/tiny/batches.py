"""Training batches: one image a row, followed by several questions that do not see each other.

Every question with its answer is a segment that attends to the image and to itself only, with
positions that go on from the image. A row thus holds several independent samples that share one
image prefix, at little more than the cost of one. One batch in five is a plain conversation
instead: the segments are turns and each sees the ones before it.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from avl_runtime.tasks import page, scene
from avl_runtime.tasks.sample import CAPTION_PROMPT, OCR_PROMPT

PATCH = 14
GRID = scene.IMAGE_SIZE // PATCH
IMAGE_TOKENS = GRID * GRID
TEXT_TOKENS = 104
QUESTION_WEIGHT = 8.0
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # CLIP's
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step reads; T = TEXT_TOKENS, all tensors on the CPU."""

    pixel_values: torch.Tensor  # [B, 3, H, W] float32
    text_ids: torch.Tensor  # [B, T] int64, what follows the image
    text_positions: torch.Tensor  # [B, T] int64, counted from the end of the image
    segment: torch.Tensor  # [B, T] int64; -1 marks padding
    weights: torch.Tensor  # [B, T] float32, loss weight of predicting each token; 0 outside answers
    ink: torch.Tensor  # [B, IMAGE_TOKENS] bool, patches that are not background
    named: torch.Tensor  # [B, T, IMAGE_TOKENS] bool, patches of what a question's word names
    about: torch.Tensor  # [B, T, IMAGE_TOKENS] bool, patches an answer's token is about
    chat: bool  # segments are turns that see the ones before


def _ink(pixels: np.ndarray) -> np.ndarray:
    """Patches in which more than 1 % of the pixels differ from the background colour."""
    far = np.abs(pixels.astype(np.int16) - pixels[-1, -1].astype(np.int16)).sum(-1) > 60
    patches = far.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
    dark: np.ndarray = patches > 0.01
    return dark.reshape(-1)


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, its answer, the loss weight of the answer's tokens, and what it is about."""

    prompt: str
    answer: str
    weight: float
    about: scene.Thing | None = None


def _questions(
    rng: random.Random, ease: float
) -> tuple[Image.Image, list[scene.Thing], list[Asked]]:
    """An image, its objects and what is asked; `ease` shortens what is to be told."""
    easy = rng.random() < ease
    if rng.random() < 0.35:
        image, lines = page.draw_page(rng, held_out=False, lengths=(1, 2, 3) if easy else (5, 6))
        row = rng.randrange(page.LINES)
        asked = [Asked(OCR_PROMPT, "\n".join(lines), 1.0)]
        if rng.random() < 0.5:
            asked.append(Asked(f"Read line {row + 1}.", lines[row], 1.0))
        return image, [], asked
    image, things = scene.draw_scene(
        rng, (1, 2, 3) if easy else (2, 3, 4, 5, 6), distinct_colors=rng.random() < 0.7
    )
    # A short answer holds one or two tokens that matter, a caption some thirty.
    questions = [scene.question(rng, things) for _ in range(6)]
    asked = [Asked(q.prompt, q.answer, QUESTION_WEIGHT, q.about) for q in questions]
    if rng.random() < 0.5:
        asked.insert(rng.randrange(3), Asked(CAPTION_PROMPT, scene.caption(things), 1.0))
    return image, things, asked


def _named(things: list[scene.Thing], word: str) -> np.ndarray:
    """[IMAGE_TOKENS] bool: the grid cells of the objects whose colour or shape is `word`."""
    cells = np.zeros((GRID, GRID), np.bool_)
    side = GRID // 3
    for thing in things:
        if word in (thing.color, thing.shape):
            y, x = thing.row * side, thing.column * side
            cells[y : y + side, x : x + side] = True
    return cells.reshape(-1)


def draw_batch(rng: random.Random, tokenizer: Tokenizer, size: int, ease: float) -> Batch:
    """Draw `size` images with as many questions as fit into TEXT_TOKENS."""
    pixels = np.empty((size, scene.IMAGE_SIZE, scene.IMAGE_SIZE, 3), np.uint8)
    text_ids = np.zeros((size, TEXT_TOKENS), np.int64)
    positions = np.zeros((size, TEXT_TOKENS), np.int64)
    segment = np.full((size, TEXT_TOKENS), -1, np.int64)
    weights = np.zeros((size, TEXT_TOKENS), np.float32)
    ink = np.zeros((size, IMAGE_TOKENS), np.bool_)
    named = np.zeros((size, TEXT_TOKENS, IMAGE_TOKENS), np.bool_)
    about = np.zeros_like(named)
    chat = rng.random() < 0.2
    for row in range(size):
        image, things, asked = _questions(rng, ease)
        pixels[row] = np.asarray(image)
        ink[row] = _ink(pixels[row])
        if chat:
            rng.shuffle(asked)
        end = 0
        for number, one in enumerate(asked):
            opening = "USER: " if chat and number else "\n"
            question = tokenizer.encode(
                f"{opening}{one.prompt} ASSISTANT:", add_special_tokens=False
            )
            ask = question.ids
            say = tokenizer.encode(f" {one.answer}</s>", add_special_tokens=False).ids
            start, begin, stop = end, end + len(ask), end + len(ask) + len(say)
            if stop > TEXT_TOKENS:
                continue
            text_ids[row, start:stop] = ask + say
            positions[row, start:stop] = np.arange(stop - start) + (start if chat else 0)
            segment[row, start:stop] = number
            weights[row, begin:stop] = one.weight
            if one.about is not None:
                # The rows that predict the answer: from the last of the prompt on.
                about[row, begin - 1 : stop - 2] = _named([one.about], one.about.color) & ink[row]
            for at, token in enumerate(question.tokens, start):
                named[row, at] = _named(things, token.lstrip("Ġ")) & ink[row]
            end = stop
    values = (pixels.astype(np.float32) / 255 - MEAN) / STD
    return Batch(
        torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2))),
        torch.from_numpy(text_ids),
        torch.from_numpy(positions),
        torch.from_numpy(segment),
        torch.from_numpy(weights),
        torch.from_numpy(ink),
        torch.from_numpy(named),
        torch.from_numpy(about),
        chat,
    )


def batches(
    tokenizer: Tokenizer, size: int, seed: int, ease_steps: int, first: int = 0
) -> Iterator[Batch]:
    """Endless batches drawn ahead in a thread; easy images fade out over `ease_steps` steps."""
    ready: queue.Queue[Batch] = queue.Queue(maxsize=4)

    def feed() -> None:
        step = first
        while True:
            rng = random.Random(f"avl/train/batch/{seed}/{step}")
            ready.put(draw_batch(rng, tokenizer, size, max(0.0, 1 - step / ease_steps)))
            step += 1

    threading.Thread(target=feed, daemon=True).start()
    while True:
        yield ready.get()

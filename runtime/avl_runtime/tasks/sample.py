"""One sample of a task by split and index: the same arguments always give the same sample."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from avl_plugins.errors import quoted
from avl_runtime.tasks import page, scene

Task = Literal["caption", "vqa", "ocr"]
Split = Literal["train", "held-out"]
TASKS: tuple[Task, ...] = ("caption", "vqa", "ocr")

CAPTION_PROMPT = "Describe the image."
OCR_PROMPT = "Read the text."


@dataclass(frozen=True, slots=True)
class Sample:
    """An image, what is asked of it and the one right answer."""

    task: Task
    image: Image.Image
    prompt: str
    answer: str


def sample(task: Task, split: Split, index: int) -> Sample:
    """Sample number `index` of a task's split.

    Raises:
        ValueError: `task` or `split` is unknown.
    """
    if task not in TASKS or split not in ("train", "held-out"):
        raise ValueError(
            f"expected a task of {', '.join(TASKS)} and split train or held-out, "
            f"found {quoted(task)} and {quoted(split)}"
        )
    rng = random.Random(f"avl/{split}/{task}/{index}")
    if task == "ocr":
        image, lines = page.draw_page(rng, held_out=split == "held-out")
        return Sample(task, image, OCR_PROMPT, "\n".join(lines))
    if task == "caption":
        image, things = scene.draw_scene(rng, (4, 5, 6))
        return Sample(task, image, CAPTION_PROMPT, scene.caption(things))
    image, things = scene.draw_scene(rng, (2, 3, 4, 5, 6), distinct_colors=True)
    question = scene.question(rng, things)
    return Sample(task, image, question.prompt, question.answer)


def samples(task: Task, split: Split, count: int, start: int = 0) -> Iterator[Sample]:
    """`count` samples from index `start` on."""
    return (sample(task, split, index) for index in range(start, start + count))

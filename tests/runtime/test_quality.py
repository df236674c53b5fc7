"""The embedded model is good at its tasks, needs its eyes, and survives A-VL and FastV.

Scores on 100 samples a task, and what each policy costs, are in benchmarks/evaluation.json
(avl-eval); these are the same measurements on fewer samples.
"""

from __future__ import annotations

import functools

import pytest
from PIL import Image

from avl_runtime import LVLM
from avl_runtime.tasks import TASKS, samples
from avl_runtime.tasks.metrics import score

SAMPLES = 60


@functools.cache
def mean_score(model: LVLM, task: str, policy: str, *, blank: bool = False) -> float:
    total = 0.0
    for one in samples(task, "held-out", SAMPLES):
        image = Image.new("RGB", one.image.size, "white") if blank else one.image
        total += score(one, model.generate(one.prompt, [image], policy=policy).text)
    return total / SAMPLES


@pytest.mark.parametrize("task", TASKS)
def test_dense_reaches_nine_tenths(tiny: LVLM, task: str) -> None:
    assert mean_score(tiny, task, "dense") >= 0.9


# What guessing gives: two of five kinds of question have two or three likely answers.
@pytest.mark.parametrize(("task", "guess"), [("caption", 0.15), ("vqa", 0.6), ("ocr", 0.25)])
def test_a_blank_image_leaves_guessing(tiny: LVLM, task: str, guess: float) -> None:
    assert mean_score(tiny, task, "dense", blank=True) <= guess


@pytest.mark.parametrize(
    ("policy", "share"),
    [("avl:keep=0.5,core=0.3,refresh=3", 0.98), ("fastv:layer=2,keep=0.5", 0.97)],
)
@pytest.mark.parametrize("task", TASKS)
def test_policies_keep_the_quality(tiny: LVLM, task: str, policy: str, share: float) -> None:
    assert mean_score(tiny, task, policy) >= share * mean_score(tiny, task, "dense")


def test_attention_ranks_better_than_chance(tiny: LVLM) -> None:
    ranked = mean_score(tiny, "ocr", "fastv:layer=2,keep=0.25")
    assert ranked > mean_score(tiny, "ocr", "random:layer=2,keep=0.25") + 0.05

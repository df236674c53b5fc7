"""Exported packages against the oracle: every policy, 24 steps, logits within 1e-4.

The oracle follows the tokens that the runtime chose, so that logits stay comparable where two
tokens nearly tie. Where two image tokens nearly tie at a selection boundary the right choice is
open; such a draw is replaced by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import avl_export
from avl_plugins.policies import Dense, Divide, Prune, Refresh, TextBudget, parse
from avl_runtime import LVLM
from avl_runtime.generate.results import Placement, Result
from avl_runtime.tasks import sample
from oracle.hf_oracle import Oracle, Places, Run, run
from oracle.rules_of import ranking_of, rules_of
from support.appended import appended_prompts
from support.random_llava import draw_images, draw_shape
from support.reference import encode, load_reference

STEPS = 24
TOLERANCE = 1e-4
CLEAR = 3e-5  # relative gap of scores above which float32 noise cannot change a ranking
DRAWS = 6
PROMPT = "What is in the picture? Read the text above the square."
AVL_TINY = Path(avl_export.__file__).parent / "models" / "avl-tiny"

POLICIES = (
    "dense",
    "fastv:layer=2,keep=0.5",
    "fastv:layer=2,keep=0.2",
    "avl",
    "avl:keep=0.6,core=0.2,refresh=2,text=0.5,text_min=3",
    "avl:keep=0.4,core=0.4,refresh=1,text=0.3,text_min=6,heavy=0.5",
    "avl:keep=0.5,core=0.25,refresh=5,prefill=0.6,text=0.6,text_min=4",
    "avl:keep=0.4,core=0.2,refresh=2,text=0.5,text_min=3+fastv:layer=2,keep=0.7",
    "avl:exact",
    "random:keep=0.5,seed=3",
    "random:keep=0.5,core=0.2,refresh=2,seed=3,of=avl",
)

Packages = Callable[[Path], LVLM]
reference = cache(load_reference)


def expected(
    checkpoint: Path, prompt: str, images: list[Image.Image], spec: str, got: Result
) -> Run:
    policy = parse(spec)
    return run(
        reference(checkpoint),
        encode(checkpoint, prompt, images),
        rules_of(policy, frozenset(one.step - 1 for one in got.placements if one.step)),
        len(got.token_ids),
        follow=got.token_ids,
        ranking=ranking_of(policy),
    )


def compare(
    model: LVLM, checkpoint: Path, spec: str, draws: Sequence[tuple[str, list[Image.Image]]]
) -> None:
    """Compare on the first draw whose rankings are clear."""
    gaps = []
    for prompt, images in draws:
        got = model.generate(
            prompt,
            images=images,
            policy=spec,
            max_new_tokens=STEPS,
            return_logits=True,
            return_placements=True,
        )
        if got.stats.drafted != got.stats.accepted:
            continue  # the oracle has no drafts that are wrong: test_drawn_cores.py has
        want = expected(checkpoint, prompt, images, spec, got)
        gaps.append(want.gap)
        if want.gap > CLEAR:
            same_places(got.placements, want.places)
            same_logits(got.logits, want.logits)
            if ",n=" in spec:
                assert got.stats.accepted and len(want.places) > 2
            if "text=" in spec:
                assert want.evictions > 0
            return
    pytest.fail(f"no draw with clear rankings among {len(draws)}: gaps {gaps}")


def same_logits(got: np.ndarray | None, want: np.ndarray) -> None:
    assert got is not None
    assert got.shape == want.shape
    worst = np.abs(got - want).max(axis=1)
    assert worst.max() < TOLERANCE, f"largest difference at each step: {worst}"


def same_places(got: Sequence[Placement], want: Sequence[Places]) -> None:
    assert [one.step for one in got] == [one.step for one in want]
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one.core, other.core, err_msg=f"core, step {one.step}")
        np.testing.assert_array_equal(one.parked, other.parked, err_msg=f"parked, step {one.step}")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spec", POLICIES)
def test_random_checkpoints(seed: int, spec: str, random_checkpoint, load: Packages) -> None:
    checkpoint = random_checkpoint(seed)
    size, count = draw_shape(seed).image_size, 1 + seed % 3
    draws = [(PROMPT, draw_images(100 * draw + seed, count, size)) for draw in range(DRAWS)]
    compare(load(checkpoint), checkpoint, spec, draws)


@pytest.mark.parametrize("spec", [*POLICIES, "avl:exact,core=0.3,n=2"])
@pytest.mark.parametrize("task", ["caption", "ocr"])
def test_avl_tiny(task: str, spec: str, load: Packages) -> None:
    samples = [sample(task, "held-out", index) for index in range(DRAWS)]
    compare(load(AVL_TINY), AVL_TINY, spec, [(one.prompt, [one.image]) for one in samples])


def test_fastv_after_any_layer_the_package_is_split_at(random_checkpoint, load) -> None:
    checkpoint, shape = random_checkpoint(1), draw_shape(1)
    draws = [(PROMPT, draw_images(draw, 2, shape.image_size)) for draw in range(DRAWS)]
    for spec in ("fastv:layer=1,keep=0.5", "avl+fastv:layer=2,keep=0.6"):
        compare(load(checkpoint, "1,2"), checkpoint, spec, draws)


@pytest.mark.parametrize("spec", POLICIES)
def test_a_second_turn_with_another_image(spec, random_checkpoint, load, monkeypatch) -> None:
    """The chat keeps its cache; the oracle is told only which tokens the second turn adds."""
    checkpoint, size = random_checkpoint(3), draw_shape(3).image_size
    appended = appended_prompts(monkeypatch)
    policy = parse(spec)
    for draw in range(DRAWS):
        images = [[image] for image in draw_images(draw, 2, size)]
        chat = load(checkpoint).chat(policy=policy)
        first = chat.send(PROMPT, images=images[0], max_new_tokens=7)
        second = chat.send("And here?", images=images[1], max_new_tokens=7, return_logits=True)

        oracle = Oracle(reference(checkpoint), rules_of(policy), ranking_of(policy))
        with torch.inference_mode():
            oracle.turn(encode(checkpoint, PROMPT, images[0]))
            for token in first.token_ids[:-1]:
                oracle.step(token)
            # The last token of a reply has no row yet: it opens the next turn.
            ids = torch.tensor([[first.token_ids[-1], *appended[-1].input_ids.tolist()]])
            pixels = encode(checkpoint, PROMPT, images[1])["pixel_values"]
            logits = [oracle.turn({"input_ids": ids, "pixel_values": pixels})]
            logits += [oracle.step(token) for token in second.token_ids[:-1]]
        if oracle.ranking.gap > CLEAR:
            same_logits(second.logits, torch.stack(logits).numpy())
            return
    pytest.fail(f"no draw with clear rankings among {DRAWS}")


def test_a_batch_of_different_prompts_and_images_is_each_alone(random_checkpoint, load) -> None:
    """Rows of a batch have different lengths, images and numbers of images."""
    checkpoint, size = random_checkpoint(6), draw_shape(6).image_size
    prompts = ["Describe the image.", PROMPT, "Read."]
    images = [draw_images(1, 1, size), draw_images(2, 2, size), draw_images(3, 1, size)]
    spec = "avl:keep=0.5,core=0.2,refresh=2,text=0.6,text_min=4"
    results = load(checkpoint).generate_batch(
        prompts, images, policy=spec, max_new_tokens=9, return_logits=True
    )
    clear = 0
    for prompt, shown, got in zip(prompts, images, results, strict=True):
        want = expected(checkpoint, prompt, shown, spec, got)
        if want.gap > CLEAR:
            same_logits(got.logits, want.logits)
            clear += 1
    assert clear


def test_every_policy_of_the_matrix_has_rules() -> None:
    assert rules_of(Dense()) == rules_of(parse("dense"))
    for spec in POLICIES:
        kinds = {type(action) for action in parse(spec).actions()}
        rules = rules_of(parse(spec))
        assert (Prune in kinds) == (rules.prune is not None)
        assert (Divide in kinds) == (Refresh in kinds) == (rules.split is not None)
        assert (TextBudget in kinds) == (rules.text is not None)

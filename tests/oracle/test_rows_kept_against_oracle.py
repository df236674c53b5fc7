"""Rows that a prompt leaves for each KV head, against the oracle: logits within 1e-4."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import layer_budgets
import own_scores
from avl_runtime import LVLM
from avl_runtime.generate.results import Result
from oracle.hf_oracle import PruneRule, Rules
from oracle.retaining import RatedStages, Retained, Staged, method_of, stages_of
from support.appended import appended_prompts
from support.random_llava import draw_images, draw_shape
from support.reference import encode, load_reference

STEPS, TOLERANCE, CLEAR, DRAWS = 6, 1e-4, 3e-5, 6  # as in test_policies_against_oracle
PROMPT = "What is in the picture? Read the text above the square."
RUN = 13  # rows
SEEDS = (0, 4, 7)  # one query head a KV head, two, four
POLICIES = (
    "snapkv",
    "snapkv:tokens=30,window=8,pool=3",
    "snapkv:keep=0.6,window=1,pool=1",
    "pyramidkv:keep=0.3,beta=4",
    "pyramidkv:keep=0.6,window=3,pool=1",
    "vlcache",
    "vlcache:keep=0.5,window=4,recent=0.3",
    "zipvl:tau=0.9,recent=9,drawn=7",
    "zipvl:tau=0.6,recent=4,drawn=0",
    "lookm",
    "lookm:keep=0.5,recent=0.2,merge=averaged",
    "lookm:keep=0.4,window=6,merge=weighted",
)

Made = Callable[[int], tuple[LVLM, Path]]
reference = cache(load_reference)


@pytest.fixture(scope="module")
def made(random_checkpoint, load) -> Made:
    @cache
    def loaded(seed: int) -> tuple[LVLM, Path]:
        checkpoint = random_checkpoint(seed)
        return in_runs(load(checkpoint).package.folder), checkpoint

    return loaded


def in_runs(package: Path, **options: int) -> LVLM:
    """A package whose prompts are read by so few rows at once that probes lie in several runs."""
    model = LVLM.load(package, backend="ort-cpu", threads=1, **options)
    model.loaded.executor.chunk = RUN
    return model


def expected(
    checkpoint: Path, prompt: str, images: list[Image.Image], spec: str, got: Result
) -> tuple[np.ndarray, Retained]:
    """Logits of the same tokens, and the oracle behind them."""
    rules = Rules(PruneRule(2, 0.5)) if spec.startswith("fastv+") else Rules()
    oracle = Retained(reference(checkpoint), rules, *method_of(spec.removeprefix("fastv+")))
    with torch.inference_mode():
        shown = encode(checkpoint, prompt, images)
        if not images:
            shown = {"input_ids": shown["input_ids"]}
        logits = [oracle.turn(shown)]
        logits += [oracle.step(token) for token in got.token_ids[:-1]]
    return torch.stack(logits).numpy(), oracle


def ask(model: LVLM, prompt: str, images: list[Image.Image], spec: str) -> Result:
    return model.generate(
        prompt, images, policy=spec, max_new_tokens=STEPS, return_logits=True,
        return_placements=True,
    )  # fmt: skip


def compare(model: LVLM, checkpoint: Path, spec: str, count: int, size: int) -> Retained:
    for draw in range(DRAWS):
        images = draw_images(draw, count, size)
        got = ask(model, PROMPT, images, spec)
        want, oracle = expected(checkpoint, PROMPT, images, spec, got)
        if oracle.gap > CLEAR:
            assert got.logits is not None
            np.testing.assert_allclose(got.logits, want, atol=TOLERANCE, rtol=0)
            alive = torch.stack([layer.alive.any(0) for layer in oracle.layers])
            kept = alive[:, oracle.is_image].numpy()
            np.testing.assert_array_equal(got.placements[0].core, kept)
            return oracle
    pytest.fail(f"{spec}: no draw with clear choices")


@pytest.mark.parametrize(
    "spec", [*POLICIES, "fastv+snapkv:keep=0.4,window=6", "fastv+lookm:keep=0.4"]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_heads_keep_what_the_oracle_says(made: Made, seed: int, spec: str) -> None:
    model, checkpoint = made(seed)
    count = 1 + SEEDS.index(seed) % 2
    oracle = compare(model, checkpoint, spec, count, draw_shape(seed).image_size)
    rows = oracle.live_rows() - (STEPS - 1)
    assert (rows.min(1) == rows.max(1)).all()
    assert rows.max() < len(oracle.is_image)


@pytest.mark.parametrize(("keep", "stages"), [(0.5, 2), (0.7, 1)])
def test_pyramiddrop_drops_in_stages(random_checkpoint, load, keep: float, stages: int) -> None:
    checkpoint, size = random_checkpoint(1), draw_shape(1).image_size
    model = load(checkpoint, "1,2")
    spec = f"pyramiddrop:layer=1,every=1,stages={stages},keep={keep}"
    for draw in range(DRAWS):
        images = draw_images(draw, 2, size)
        got = ask(model, PROMPT, images, spec)
        oracle = Staged(reference(checkpoint), [1, 2][:stages], keep)
        with torch.inference_mode():
            logits = [oracle.turn(encode(checkpoint, PROMPT, images))]
            logits += [oracle.step(token) for token in got.token_ids[:-1]]
        if oracle.ranking.gap > CLEAR:
            want = torch.stack(logits).numpy()
            np.testing.assert_allclose(got.logits, want, atol=TOLERANCE, rtol=0)
            np.testing.assert_array_equal(got.placements[0].core, oracle.places[0].core)
            left = got.placements[0].core.sum(1)
            assert left[0] > left[1] >= left[-1] > 0
            return
    pytest.fail(f"{spec}: no draw with clear choices")


def test_own_scores_are_those_of_the_layer_itself(random_checkpoint, load) -> None:
    """What scripts/own_scores.py compares with, of all tokens that the layer would be given."""
    checkpoint, size = random_checkpoint(1), draw_shape(1).image_size
    model = load(checkpoint, "1,2")
    images = draw_images(0, 2, size)
    (stage,), both = own_scores.own_stages(model, {"prompt": PROMPT, "images": images}, [1], 0.4)
    oracle = Retained(reference(checkpoint), Rules(), "snapkv", {"keep": 1.0})
    with torch.inference_mode():
        oracle.turn(encode(checkpoint, PROMPT, images))
    tokens = oracle.is_image.nonzero()[:, 0].tolist()
    kept = []
    for layer in (0, 1):
        given = oracle.attention[layer][:, -1].double().mean(0)
        order = sorted(tokens, key=lambda token: -float(given[token]))
        kept.append(set(order[: int(0.4 * len(tokens))]))
    assert set(stage.ranking.positions) == kept[1] != kept[0]
    assert both == [len(kept[0] & kept[1]) / len(kept[1])]


def test_densities_of_rows_are_brute_force(made: Made) -> None:
    """What scripts/layer_budgets.py compares with."""
    model, checkpoint = made(4)
    for draw in range(DRAWS):
        images = draw_images(draw, 1, draw_shape(4).image_size)
        oracle = Retained(reference(checkpoint), Rules(), "snapkv", {"keep": 1.0})
        with torch.inference_mode():
            oracle.turn(encode(checkpoint, PROMPT, images))
        first = int(oracle.is_image.nonzero()[-1]) + 1
        want, gap = [], np.inf
        for weights in oracle.attention.values():
            heads = weights.double().unflatten(0, (oracle.kv_heads, -1)).mean(1)
            shares = []
            for row in range(first, len(oracle.is_image)):
                for given in heads[:, row, : row + 1].tolist():
                    bar = max(given) / 100
                    gap = min(gap, *(abs(one - bar) / bar for one in given))
                    shares.append(sum(one >= bar for one in given) / len(given))
            want.append(float(np.mean(shares)))
        if gap > CLEAR:
            asked = {"prompt": PROMPT, "images": images}
            assert layer_budgets.row_densities(model, asked) == pytest.approx(want, abs=1e-9)
            return
    pytest.fail("no draw with clear choices")


def rated(checkpoint: Path, images: list[Image.Image], spec: str, got: Result) -> RatedStages:
    """The oracle of `sparsevlm` behind the tokens of a reply, whose logits agree if it is clear."""
    oracle = RatedStages(reference(checkpoint), stages_of(spec))
    shown = encode(checkpoint, PROMPT, images)
    with torch.inference_mode():
        logits = [oracle.turn(shown if images else {"input_ids": shown["input_ids"]})]
        logits += [oracle.step(token) for token in got.token_ids[:-1]]
    if oracle.gap > CLEAR:
        want = torch.stack(logits).numpy()
        np.testing.assert_allclose(got.logits, want, atol=TOLERANCE, rtol=0)
    return oracle


@pytest.mark.parametrize("split", ["1,2", "2"])
@pytest.mark.parametrize("keep", ["0.6/0.3", "0.5/0.5", "0.4", "0.00001"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_sparsevlm_ranks_by_raters(random_checkpoint, load, split, keep, count) -> None:
    if keep.count("/") != split.count(","):
        return
    checkpoint, size = random_checkpoint(1), draw_shape(1).image_size
    model = in_runs(load(checkpoint, split).package.folder)  # raters lie in several runs
    spec = f"sparsevlm:layers={split.replace(',', '/')},keep={keep}"
    for draw in range(DRAWS):
        images = draw_images(draw, count, size)
        got = ask(model, PROMPT, images, spec)
        oracle = rated(checkpoint, images, spec, got)
        if oracle.gap > CLEAR:
            if images:
                np.testing.assert_array_equal(got.placements[0].core, oracle.places[0].core)
                behind = len(oracle.is_image) - STEPS - int(oracle.is_image.nonzero()[-1])
                assert 0 < len(oracle.raters) < behind
            return
    pytest.fail(f"{spec}: no draw with clear choices")


def test_sparsevlm_joined_with_others_and_in_a_batch(made: Made) -> None:
    """Whatever else asks for attention of the same rows."""
    model, _ = made(4)
    shown = [draw_images(1, 1, draw_shape(4).image_size), draw_images(2, 2, 28), []]
    spec = "sparsevlm:layers=2,keep=0.4"
    alone = [ask(model, PROMPT, images, spec) for images in shown]
    for other in ("", "+avl:keep=1,core=1", "+snapkv:keep=1", "+uniform:keep=1"):
        got = model.generate_batch(
            [PROMPT] * 3, shown, policy=spec + other, max_new_tokens=STEPS, return_logits=True
        )
        for one, by_itself in zip(got, alone, strict=True):
            np.testing.assert_allclose(one.logits, by_itself.logits, atol=1e-5, rtol=0)
    fastv = "fastv:layer=2,keep=0.4"
    # A-VL ranks by the last row beside it.
    divided = [
        ask(model, PROMPT, shown[1], f"{one}+avl:keep=0.3,core=0.2") for one in (spec, fastv)
    ]
    cores = [one.placements[0].core[:2] for one in divided]
    np.testing.assert_array_equal(*cores)
    whole = in_runs(model.package.folder, prefix_cache=1 << 24)
    for _ in range(2):  # raters are chosen by embeddings of all rows: none are taken
        again = ask(whole, PROMPT, shown[1], spec)
        assert again.stats.prefix_tokens == 0
        np.testing.assert_array_equal(again.logits, alone[1].logits)


def test_without_a_picture(made: Made) -> None:
    model, checkpoint = made(0)
    compare(model, checkpoint, "snapkv:keep=0.5,window=4,pool=3", 0, 8)


def test_a_budget_that_takes_all_rows_is_dense(made: Made) -> None:
    model, _ = made(0)
    images = draw_images(0, 1, draw_shape(0).image_size)
    dense = ask(model, PROMPT, images, "dense")
    for spec in ("snapkv:keep=1", "snapkv:tokens=4000"):
        got = ask(model, PROMPT, images, spec)
        np.testing.assert_array_equal(got.logits, dense.logits)


@pytest.mark.parametrize("spec", POLICIES)
def test_a_batch_is_each_alone(made: Made, spec: str) -> None:
    model, checkpoint = made(4)
    size = draw_shape(4).image_size
    prompts = ["Describe the image.", PROMPT, "Read."]
    images = [draw_images(1, 1, size), draw_images(2, 2, size), []]
    results = model.generate_batch(
        prompts, images, policy=spec, max_new_tokens=STEPS, return_logits=True
    )
    clear = 0
    for prompt, shown, got in zip(prompts, images, results, strict=True):
        want, oracle = expected(checkpoint, prompt, shown, spec, got)
        if oracle.gap > CLEAR:
            np.testing.assert_allclose(got.logits, want, atol=TOLERANCE, rtol=0)
            clear += 1
    assert clear


def test_a_prompt_that_begins_as_another_did(made: Made) -> None:
    """What the earlier one left is taken up to the first probe, whose attention has to be seen."""
    alone, _ = made(0)
    images = draw_images(3, 1, draw_shape(0).image_size)
    model = in_runs(alone.package.folder, prefix_cache=1 << 24)
    left = ask(model, PROMPT, images, "lookm:keep=0.3")  # of which nothing merged is left
    first = ask(model, PROMPT, images, "dense")
    assert left.stats.prefix_tokens == 0 < first.stats.prefix_tokens
    np.testing.assert_array_equal(first.logits, ask(alone, PROMPT, images, "dense").logits)
    for spec in POLICIES:
        again = ask(model, PROMPT, images, spec)
        assert again.stats.prefix_tokens < first.stats.prompt_tokens
        probes = "drawn=7" in spec or ("lookm" in spec and "window" not in spec)  # of the first run
        assert again.stats.prefix_tokens > 0 or probes
        np.testing.assert_array_equal(again.logits, ask(alone, PROMPT, images, spec).logits)


@pytest.mark.parametrize("spec", ["snapkv:keep=0.5,window=6,pool=3", "lookm:keep=0.5"])
def test_a_second_turn_chooses_among_what_the_first_left(made: Made, monkeypatch, spec) -> None:
    model, checkpoint = made(4)
    size = draw_shape(4).image_size
    appended = appended_prompts(monkeypatch)
    for draw in range(DRAWS):
        images = [[image] for image in draw_images(draw, 2, size)]
        chat = model.chat(policy=spec)
        first = chat.send(PROMPT, images=images[0], max_new_tokens=4)
        second = chat.send("And here?", images=images[1], max_new_tokens=4, return_logits=True)
        oracle = Retained(reference(checkpoint), Rules(), *method_of(spec))
        with torch.inference_mode():
            oracle.turn(encode(checkpoint, PROMPT, images[0]))
            for token in first.token_ids[:-1]:
                oracle.step(token)
            ids = torch.tensor([[first.token_ids[-1], *appended[-1].input_ids.tolist()]])
            pixels = encode(checkpoint, PROMPT, images[1])["pixel_values"]
            logits = [oracle.turn({"input_ids": ids, "pixel_values": pixels})]
            logits += [oracle.step(token) for token in second.token_ids[:-1]]
        if oracle.gap > CLEAR:
            want = torch.stack(logits).numpy()
            np.testing.assert_allclose(second.logits, want, atol=TOLERANCE, rtol=0)
            return
    pytest.fail("no draw with clear choices")

"""Packages that tell the attention of their encoder, and policies that choose by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avl_export.cli import main as avl_export
from avl_export.options import Options, OptionsError
from avl_plugins.errors import PolicyError
from avl_plugins.graph_io import PIXELS
from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.generate.prefill import finished
from avl_runtime.package.info import describe
from families import test_internvl as other_cases
from families.support import Case, Made, picture
from families.telling import received
from families.test_llava_towers import GRID, VIPLLAVA, case
from oracle.hf_oracle import Oracle
from oracle.looking import LOOKING, visionzip
from oracle.reading import Shown, cut, read
from oracle.rules_of import rules_of
from oracle.selecting import Draws
from support.traced import traced_once

PROMPT = "What is in the picture?"
IMAGES = [picture((61, 40)), picture((20, 90), 1)]
FLAG = "--vision-attention"
CLEAR = 3e-7
CASES = (
    case("clip", "default", -2),
    case("siglip", "full", -1),
    VIPLLAVA,
)


@pytest.fixture(scope="module", params=CASES, ids=lambda one: one.name)
def telling(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make: Callable[[Case], Made],
) -> tuple[Made, LVLM]:
    made = make(request.param)
    return made, exported(made, tmp_path_factory.mktemp("telling"))


def exported(made: Made, folder: Path) -> LVLM:
    out = folder / "model.avl"
    command = ["--model", str(made.folder), "--out", str(out), FLAG, "--no-check"]
    with traced_once(made.graphs):
        assert avl_export(command) == 0
    return LVLM.load(out, backend="ort-cpu", threads=1)


def attention_of(made: Made, model: LVLM, images: list[Image.Image]) -> np.ndarray:
    """[images, tokens, 3] as transformers' tower says it."""
    media = model.processor.encode(PROMPT, images).media
    pixels = torch.from_numpy(np.concatenate([one.inputs[PIXELS] for one in media]))
    found = received(made.reference.model.vision_tower, pixels, made.case.config)
    strategy = getattr(made.case.config, "vision_feature_select_strategy", "default")
    return found[:, int(strategy == "default") :].numpy()


def test_attention_is_transformers_own(telling: tuple[Made, LVLM]) -> None:
    made, model = telling
    prompt = model.processor.encode(PROMPT, IMAGES)
    found = finished(model.loaded.features.encoding(prompt.media))
    wanted = attention_of(made, model, IMAGES)
    for one, want in zip(found, wanted, strict=True):
        assert one.attention.dtype == np.float32
        np.testing.assert_allclose(one.attention, want, atol=1e-7, rtol=1e-4)
    sums = wanted[:, :, 1].sum(1)
    assert ((sums > 0.5) & (sums < 1.001)).all()


@pytest.mark.parametrize("name", ["visionzip", "vispruner", "hiprune", "scope", "holov"])
def test_what_is_chosen_is_as_if_the_others_were_not_there(
    telling: tuple[Made, LVLM], name: str
) -> None:
    """Two pictures, each with a budget of its own, against transformers' decoder."""
    made, model = telling
    policy = parse(f"{name}:tokens=8")
    for seed in range(8):
        images = [picture((61, 40), seed), picture((20, 90), seed + 8)]
        left, gap = left_of(name, made, images, attention_of(made, model, images))
        if gap > CLEAR:
            break
    else:
        pytest.fail("no draw with clear choices")
    got = model.generate(PROMPT, images, policy=policy, max_new_tokens=4, return_logits=True)
    oracle = Oracle(made.reference, rules_of(parse("dense")))
    with torch.inference_mode():
        logits = [oracle.turn(left)]
        logits += [oracle.step(token) for token in got.token_ids[:-1]]
    np.testing.assert_allclose(got.logits, torch.stack(logits).numpy(), atol=1e-4, rtol=0)
    assert got.stats.visual_tokens_read == 16


def left_of(
    name: str, made: Made, images: list[Image.Image], attention: np.ndarray
) -> tuple[Shown, float]:
    """What a method leaves of a prompt, with means where it merges, and how clearly."""
    whole, draws = read(made.reference, made.encode(PROMPT, images)), Draws()
    embeds, keep = whole.embeds.clone(), ~whole.visual
    visual = torch.nonzero(whole.visual)[:, 0]
    for at, weights in zip(visual.reshape(len(images), -1), attention, strict=True):
        shown = at[-GRID * GRID :]  # a class token shows no place, and stays
        others = len(at) - len(shown)
        features = whole.embeds[shown].double().numpy()
        look = (features, *weights[others:].T, (GRID, GRID))
        if name == "visionzip":
            some, joined = visionzip(look, 8 - others, draws)
            for target, more in joined.items():
                group = shown[[target, *more]]
                embeds[shown[target]] = whole.embeds[group].double().mean(0).float()
        else:
            some = LOOKING[name](look, 8 - others, draws)
        keep[at[:others]] = True
        keep[shown[some]] = True
    return cut(replace(whole, embeds=embeds), keep), draws.gap


def test_packages_that_do_not_tell_are_refused(tiny: LVLM, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"scope: expected a package whose encoder tells"):
        tiny.generate(PROMPT, IMAGES[:1], policy="scope")
    assert describe(tiny.package)["vision_attention"] is False
    with pytest.raises(OptionsError, match=r"--policy visionzip: expected --vision-attention"):
        Options("avl-tiny", tmp_path, policy="visionzip")


def test_families_that_cannot_tell_are_refused(
    make: Callable[[Case], Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(other_cases.CASES[0])
    out = tmp_path / "model.avl"
    assert avl_export(["--model", str(made.folder), "--out", str(out), FLAG]) == 1
    assert "--vision-attention: expected a model" in capsys.readouterr().err
    assert not out.exists()

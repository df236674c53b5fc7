"""Packages whose attention takes a bias, RESTORE's (arXiv 2606.01711) and CAAC's: against HF's."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import gpu_decode
from avl_export.cli import main as avl_export
from avl_export.options import Options, OptionsError
from avl_plugins.errors import PolicyError
from avl_plugins.policies import Picture, Select, Selecting, parse
from avl_runtime import LVLM
from avl_runtime.execute.device import growth
from avl_runtime.execute.protocol import PromptTooLongError
from avl_runtime.package.engine_sets import Limits
from avl_runtime.package.info import describe, info_text
from avl_runtime.vision.load.videos import Video
from device.loop_cases import ask, on_stand_in
from device.loop_cases import same as equal
from device.sessions import HostSessions, open_on_sessions
from device.standin import HostDevice
from families import test_gemma3, test_qwen2_5_vl, test_qwen3_vl
from families.calibrated import CalibratedTests
from families.chosen import ChosenTests
from families.support import Case, Made, clip, picture, write_checkpoint
from families.test_llava_towers import case
from oracle.hf_oracle import Oracle, Rules
from oracle.reading import cut, read
from support.appended import appended_prompts

FLAG = "--restore"
PROMPT, STEPS, TOLERANCE = "What is in the picture?", 5, 1e-4
LLAVA = case("siglip", "full", -1)
RESTORED = "divprune:tokens=9,positions=restore"
# In the last one KV heads hold other rows than one another, and parked ones are read.
DEVICES = (f"{RESTORED}+fastv", *gpu_decode.RESTORED)


@pytest.fixture(scope="session")
def restored(make: Callable[[Case], Made]) -> Callable[[Case], Made]:
    """Maps a case to its checkpoint, whose package takes the bias."""

    @functools.cache
    def exported(case: Case) -> Made:
        return make(case).exported_with(FLAG, *(() if case is LLAVA else ("--no-check",)))

    return exported


@pytest.fixture(scope="session")
def made(request: pytest.FixtureRequest, restored: Callable[[Case], Made]) -> Made:
    return restored(request.param)


@pytest.fixture(scope="session")
def llava(restored: Callable[[Case], Made]) -> Made:
    return restored(LLAVA)


class TestRestored(ChosenTests):
    """One axis of positions, M-RoPE, and M-RoPE of other axes with deepstack."""

    cases = (LLAVA, *test_qwen2_5_vl.CASES, *test_qwen3_vl.CASES)
    choosing = (
        RESTORED,
        "mmtok:keep=0.4,positions=restore+avl:keep=0.6,core=0.3,refresh=2,text=0.6,text_min=4",
        "divprune:keep=0.7,positions=restore+fastv:layer=2,keep=0.5",
        "divprune:tokens=9,positions=restore,gamma=0.5",
        "mmtok:tokens=7,gamma=0.75+avl:keep=0.6,core=0.3,refresh=2",
        "divprune:tokens=8,positions=renumber,gamma=0.5",
    )

    def _draws(self) -> list[list[Image.Image]]:
        return [[picture((97, 61), seed), picture((64, 64), seed + 9)] for seed in range(8)]


class TestCalibrated(CalibratedTests):
    """In the same families."""

    cases = TestRestored.cases


def same(got: np.ndarray | None, expected: list[torch.Tensor]) -> None:
    assert got is not None
    np.testing.assert_allclose(got, torch.stack(expected).numpy(), atol=TOLERANCE, rtol=0)


@dataclass(frozen=True, slots=True)
class Halved(Selecting):
    """Every second token, which becomes the mean of itself and the one behind it."""

    name: ClassVar[str] = "halved"

    def pick(self, picture: Picture, count: int) -> np.ndarray:
        return np.arange(0, 2 * count, 2)

    def groups(self, picture: Picture, picked: np.ndarray) -> np.ndarray:
        return np.arange(picture.places.shape[1]) // 2 * 2


def test_a_row_that_is_a_mean_stands_for_all_of_its_tokens(llava: Made) -> None:
    images = [picture((97, 61))]
    whole = read(llava.reference, llava.encode(PROMPT, images))
    embeds, keep = whole.embeds.clone(), ~whole.visual
    counts = torch.ones(len(keep), dtype=torch.int64)
    for group in torch.nonzero(whole.visual)[:, 0].split(2):
        embeds[group[0]] = whole.embeds[group].double().mean(0).float()
        keep[group[0]], counts[group[0]] = True, len(group)
    oracle = Oracle(llava.reference, Rules(), restore=True)
    got = llava.model.generate(
        PROMPT,
        images,
        policy=Halved(tokens=13, positions="restore"),
        max_new_tokens=STEPS,
        return_logits=True,
    )
    with torch.inference_mode():
        logits = [oracle.turn(cut(replace(whole, embeds=embeds, counts=counts), keep))]
        logits += [oracle.step(token) for token in got.token_ids[:-1]]
    same(got.logits, logits)
    assert oracle.counts.max() == 2 and len(got.token_ids) == STEPS


def test_the_bias_begins_with_the_first_picture(
    llava: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat whose second turn shows one; rows of text before it get it from then on, too."""
    spec = "uniform:keep=1,positions=restore"  # all tokens stay: the bias alone is seen
    plain = llava.model.generate("Hello?", policy="dense", max_new_tokens=4, return_logits=True)
    alone = llava.model.generate("Hello?", policy=spec, max_new_tokens=4, return_logits=True)
    np.testing.assert_array_equal(plain.logits, alone.logits)
    appended = appended_prompts(monkeypatch)
    chat, images = llava.model.chat(policy=spec), [picture((97, 61))]
    first = chat.send("Hello?", max_new_tokens=4)
    second = chat.send(PROMPT, images=images, max_new_tokens=4, return_logits=True)
    third = chat.send("And?", max_new_tokens=4, return_logits=True)
    oracle = Oracle(llava.reference, Rules(), restore=True)
    with torch.inference_mode():
        oracle.turn(llava.encode("Hello?"))
        for token in first.token_ids[:-1]:
            oracle.step(token)
        pixels = llava.encode(PROMPT, images)["pixel_values"]
        for before, got, more in ((first, second, {"pixel_values": pixels}), (second, third, {})):
            prompt = appended[-2 if before is first else -1]
            ids = torch.tensor([[before.token_ids[-1], *prompt.input_ids.tolist()]])
            logits = [oracle.turn({"input_ids": ids, **more})]
            logits += [oracle.step(token) for token in got.token_ids[:-1]]
            same(got.logits, logits)
    assert not oracle.biased.all() and oracle.biased.any()


def test_each_of_a_batch_has_its_own_bias_or_none(llava: Made) -> None:
    images = [[picture((97, 61), 1)], [picture((64, 64), 2)], [picture((97, 61), 1)]]
    policies = [RESTORED, "avl:keep=0.5,core=0.2,refresh=2", "divprune:tokens=9"]
    found = llava.model.generate_batch(
        [PROMPT] * 3, images, policies=policies, max_new_tokens=STEPS, return_logits=True
    )
    alone = [
        llava.model.generate(PROMPT, shown, policy=spec, max_new_tokens=STEPS, return_logits=True)
        for shown, spec in zip(images, policies, strict=True)
    ]
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=TOLERANCE, rtol=0)
    assert np.abs(found[0].logits - found[2].logits).max() > 10 * TOLERANCE


def test_rows_read_with_a_bias_are_no_others_prefix(llava: Made) -> None:
    """Of two runs of a long prompt, the first is shared by prompts with the same bias alone."""
    images, prompt = [picture((97, 61), 1)], "Read the text. " * 90
    shares = LVLM.load(llava.package, backend="ort-cpu", threads=1, prefix_cache="auto")
    for spec in ("divprune:tokens=9", RESTORED, RESTORED):
        asked = {"policy": spec, "max_new_tokens": 2, "return_logits": True}
        want = llava.model.generate(prompt, images, **asked)
        got = shares.generate(prompt, images, **asked)
        np.testing.assert_array_equal(got.logits, want.logits)
    assert got.stats.prefix_tokens > 0


def test_drafts_are_checked_with_the_bias(llava: Made) -> None:
    """And a reply is what it would be without any."""
    spec = f"{RESTORED}+avl:exact,core=0.4,n=2"
    images = [picture((97, 61), 3)]
    plain = llava.model.generate(PROMPT, images, policy=RESTORED, max_new_tokens=24)
    got = llava.model.generate(PROMPT, images, policy=spec, max_new_tokens=24)
    assert got.token_ids == plain.token_ids
    assert got.stats.drafted > 0


def test_a_fork_goes_on_by_itself(llava: Made) -> None:
    chat = llava.model.chat(policy=RESTORED)
    chat.send(PROMPT, images=[picture((97, 61))], max_new_tokens=3)
    other = chat.fork()
    other.send("Something else, and longer?", max_new_tokens=6)
    one = chat.send("And?", max_new_tokens=4, return_logits=True)
    again = llava.model.chat(policy=RESTORED)
    again.send(PROMPT, images=[picture((97, 61))], max_new_tokens=3)
    two = again.send("And?", max_new_tokens=4, return_logits=True)
    np.testing.assert_allclose(one.logits, two.logits, atol=1e-6, rtol=0)


def test_times_beyond_the_context_are_refused(restored: Callable[[Case], Made]) -> None:
    """Of a video so slow that M-RoPE's times pass all distances of the graph's table."""
    model = restored(test_qwen2_5_vl.CASES[0]).model
    asked = {"videos": [Video(clip(13, (40, 30)), 0.01)], "max_new_tokens": 2}
    assert len(model.generate(PROMPT, policy="uniform:keep=1", **asked).token_ids) == 2
    with pytest.raises(PromptTooLongError, match=r"positions below 2048 .* found 2\d\d\d, of a"):
        model.generate(PROMPT, policy="uniform:keep=1,positions=restore", **asked)
    asked["videos"] = [Video(clip(13, (40, 30)), 0.02)]
    model.generate(PROMPT, policy="uniform:keep=1,positions=restore", **asked)


def test_an_answer_ends_where_times_end_with_the_context(
    restored: Callable[[Case], Made],
) -> None:
    model, videos = restored(test_qwen2_5_vl.CASES[0]).model, [Video(clip(13, (40, 30)), 13 / 1212)]
    left = model.package.manifest.dims.max_positions
    left -= model.processor.encode(PROMPT, videos=videos).next_position
    asked = {"policy": "uniform:positions=restore", "max_new_tokens": 9, "min_new_tokens": 9}
    found = model.generate(PROMPT, videos=videos, **asked)
    assert len(found.token_ids) == left + 1 < 9


def test_packages_say_that_they_take_it_and_others_are_refused(llava: Made, tiny: LVLM) -> None:
    assert describe(tiny.package)["restores"] is False
    told = describe(llava.model.package)
    assert told["restores"] is True and "attention takes RESTORE's bias" in info_text(told)
    with pytest.raises(PolicyError, match=r"expected a package whose attention can be biased"):
        tiny.generate("Hello", policy=RESTORED)
    with pytest.raises(OptionsError, match=r"expected --restore with it"):
        Options("avl-tiny", Path("x.avl"), policy=RESTORED)
    with pytest.raises(PolicyError, match=r"expected renumber or restore, found both"):
        Select(parse(RESTORED), 0.5, None, True, True)


@pytest.mark.parametrize("kv", ["fp16", "int8", "int8-int4"])
def test_rows_that_are_kept_otherwise_are_biased_too(kv: str, llava: Made) -> None:
    """Their rounding changes logits by less than the bias does; and parked rows are read."""
    images = [picture((97, 61), 5)]
    model = LVLM.load(llava.package, backend="ort-cpu", threads=1, kv=kv)
    split = "+avl:keep=0.7,core=0.3,refresh=2"

    def logits(of: LVLM, spec: str) -> np.ndarray:
        found = of.generate(PROMPT, images, policy=spec, max_new_tokens=3, return_logits=True)
        return found.logits[0]

    for more in ("", split):
        exact, found = (logits(one, f"{RESTORED}{more}") for one in (llava.model, model))
        plain = logits(llava.model, f"divprune:tokens=9{more}")
        assert np.abs(found - exact).max() < 0.5 * np.abs(plain - exact).max()


@pytest.mark.parametrize("park_on_host", [False, True])
def test_devices_are_told_where_rows_stand(
    llava: Made, tmp_path: Path, park_on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks, with caches that grow; steps are recorded, and the bias is felt."""
    monkeypatch.setattr(growth, "GROWTH", 4)
    limits = Limits(decode_rows=8, prompt_rows=16, cache_rows=512, batch=2)
    model, device = on_stand_in(llava.package, tmp_path, limits, park_on_host=park_on_host)
    asked = {"return_placements": True, "min_new_tokens": 8}
    for policy in DEVICES:
        before = device.done["replay"]
        found, expected = (ask(one, policy, 8, **asked) for one in (model, llava.model))
        equal(found, expected)
        assert device.done["replay"] > before
        plain = ask(llava.model, policy.replace(",positions=restore", ""), 1)
        assert plain.logits is not None and found.logits is not None
        assert np.abs(plain.logits[0] - found.logits[0]).max() > 5e-3
    before = device.done["select_text-1024"]
    policy = "avl:text=0.5,text_min=4"  # has no bias: engines add zeros, and the device selects
    equal(*(ask(one, policy, 8, **asked) for one in (model, llava.model)))
    assert device.done["select_text-1024"] > before


def test_no_device_computes_steps_again(llava: Made, tmp_path: Path) -> None:
    model, _ = on_stand_in(llava.package, tmp_path)
    with pytest.raises(PolicyError, match=r"caac: expected steps that can .*; use ort-cpu"):
        ask(model, "caac", 2)


def test_a_batch_of_which_some_are_biased_on_devices(llava: Made, tmp_path: Path) -> None:
    """On engines, and on ort-cuda, whose sessions run the package's own graphs."""
    sessions = HostSessions(HostDevice(interpreted=False))
    backend = open_on_sessions(sessions, llava.model.package)
    with mock.patch("avl_runtime.requests.loaded.load_backend", lambda *_, **__: backend):
        cuda = LVLM.load(llava.package, backend="ort-cuda")
    engines, _ = on_stand_in(llava.package, tmp_path)
    images = [[picture((97, 61), 5)], [picture((64, 64), 9)]]
    found, others, expected = (
        one.generate_batch(
            [PROMPT] * 2,
            images,
            policies=[DEVICES[-1], "avl"],
            max_new_tokens=6,
            return_logits=True,
            return_placements=True,
        )
        for one in (engines, cuda, llava.model)
    )
    for place, result in enumerate(expected):
        equal(found[place], result)
        equal(others[place], result)


def test_decoders_whose_layers_differ_are_refused(tmp_path: Path) -> None:
    write_checkpoint(test_gemma3.CASES[0], tmp_path / "model")
    command = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "x.avl"), FLAG]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert avl_export([*command, "--dry-run"]) == 1
    assert "--restore: expected a decoder whose layers all attend" in said.getvalue()

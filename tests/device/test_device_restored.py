"""RESTORE's bias on the stand-in: engines are told where every row stands, as ort-cpu is."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from avl_export.cli import main as export
from avl_plugins.errors import PolicyError
from avl_runtime import LVLM
from avl_runtime.execute.device import growth
from avl_runtime.package.package import load_package
from avl_runtime.tasks import sample
from device.loop_cases import ask, on_stand_in, same
from device.sessions import HostSessions, open_on_sessions
from device.standin import HostDevice

BIASED = "divprune:tokens=40,positions=restore"
POLICIES = (
    BIASED,
    f"{BIASED}+fastv",
    # Rows of the KV heads are others than one another's, and parked ones are read.
    "uniform:keep=0.5,positions=restore+avl:refresh=2,text=0.5,text_min=4",
)


@pytest.fixture(scope="module")
def package(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("restored") / "tiny.avl"
    arguments = ["--model", str(tiny_checkpoint), "--out", str(out), "--no-check", "--restore"]
    assert export(arguments) == 0
    return out


@pytest.fixture(scope="module")
def host(package: Path) -> LVLM:
    return LVLM.load(package, backend="ort-cpu", threads=1)


@pytest.mark.parametrize("park_on_host", [False, True])
def test_replies_are_those_of_ort_cpu(
    package: Path,
    host: LVLM,
    tmp_path: Path,
    park_on_host: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In chunks of 64 tokens, with caches that grow; and steps are still recorded."""
    monkeypatch.setattr(growth, "GROWTH", 8)
    model, device = on_stand_in(package, tmp_path / "made", park_on_host=park_on_host)
    for policy in POLICIES:
        before = device.done["replay"]
        found, expected = (ask(one, policy, 12, return_placements=True) for one in (model, host))
        same(found, expected)
        assert device.done["replay"] > before
        plain = ask(host, policy.replace(",positions=restore", ""), 1)
        assert np.abs(plain.logits[0] - found.logits[0]).max() > 0.02, "the bias is felt"


def test_steps_are_not_computed_again(package: Path, tmp_path: Path) -> None:
    model, _ = on_stand_in(package, tmp_path / "made")
    with pytest.raises(PolicyError, match=r"caac: expected steps that can .*; use ort-cpu"):
        ask(model, "caac", 2)


def test_a_package_with_the_bias_answers_as_one_without(
    package: Path, tiny: LVLM, tmp_path: Path
) -> None:
    """Engines that always add the bias add zeros; A-VL selects on the device as ever."""
    model, device = on_stand_in(package, tmp_path / "made")
    policy = "avl:text=0.5,text_min=4"
    same(
        ask(model, policy, 8, return_placements=True), ask(tiny, policy, 8, return_placements=True)
    )
    assert device.done["select_text-1024"] > 0


def test_a_batch_of_some_that_are_biased(package: Path, host: LVLM, tmp_path: Path) -> None:
    model, _ = on_stand_in(package, tmp_path / "made")
    both = [sample("caption", "held-out", 3), sample("vqa", "held-out", 1)]
    found, expected = (
        each.generate_batch(
            [one.prompt for one in both],
            [[one.image] for one in both],
            policies=[POLICIES[2], "avl"],
            max_new_tokens=8,
            return_logits=True,
            return_placements=True,
        )
        for each in (model, host)
    )
    for ours, theirs in zip(found, expected, strict=True):
        same(ours, theirs)


def test_ort_cuda_is_told_too(package: Path, host: LVLM) -> None:
    """Its sessions run the package's own graphs, and a chat's turns follow one another."""
    backend = open_on_sessions(HostSessions(HostDevice(interpreted=False)), load_package(package))
    with mock.patch("avl_runtime.requests.loaded.load_backend", lambda *_, **__: backend):
        model = LVLM.load(package, backend="ort-cuda")
    chats = [each.chat(policy=POLICIES[2]) for each in (model, host)]
    one = sample("vqa", "held-out", 2)
    for prompt, images in ((one.prompt, [one.image]), ("And now?", [])):
        asked = {"max_new_tokens": 5, "return_logits": True, "return_placements": True}
        same(*(chat.send(prompt, images, **asked) for chat in chats))

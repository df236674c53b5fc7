"""Layers with budgets of their own against the oracle: logits within 1e-4, kernels on and off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import avl_export
from avl_plugins import cpu
from avl_runtime import LVLM
from avl_runtime.generate import choices
from avl_runtime.tasks import sample
from oracle.hf_oracle import ByAttention, Oracle, Rules, SplitRule, TextRule
from support.pyramid import Pyramid, Stairs, kept, texts
from support.reference import encode, load_reference

AVL_TINY = Path(avl_export.__file__).parent / "models" / "avl-tiny"
STEPS, TOLERANCE, CLEAR, DRAWS = 20, 1e-4, 3e-5, 6  # as in test_policies_against_oracle


class ByDepth(ByAttention):
    """As many as a layer's own share."""

    def __init__(self, policy: Pyramid | Stairs) -> None:
        super().__init__()
        self.policy = policy

    def core(self, total: int, layer: int) -> int:
        share = kept(layer) / 2
        if isinstance(self.policy, Stairs):
            share = kept(layer)
        elif self.policy.fixed:
            share = 0.2
        return int(share * total + 1e-9)

    def partition(
        self, scores: Tensor, total: int, secondary: int, core: int, layer: int
    ) -> tuple[list[int], list[int]]:
        count = int(kept(layer) * total + 1e-9)
        return super().partition(scores, total, count, self.core(total, layer), layer)

    def refresh(self, scores: Tensor, total: int, count: int, layer: int, step: int) -> list[int]:
        return super().refresh(scores, total, self.core(total, layer), layer, step)


class DeepOracle(Oracle):
    """Each layer keeps so many of the newest text tokens behind the image."""

    def _evict_text(self) -> None:
        behind = torch.arange(len(self.is_image)) > int(torch.nonzero(self.is_image)[0, 0])
        for index, layer in enumerate(self.layers):
            for alive in layer.alive:
                tokens = torch.nonzero(alive & behind & ~self.is_image)[:, 0]
                alive[tokens[: max(0, len(tokens) - texts(index))]] = False


@pytest.mark.parametrize("kernels_on", [True, False])
@pytest.mark.parametrize(
    "policy", [Pyramid(), Pyramid(fixed=True), Pyramid(text=True), Stairs()], ids=str
)
def test_logits_are_those_of_masks(
    tiny_package: Path,
    kernels: Path,
    policy: Pyramid | Stairs,
    kernels_on: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not kernels_on:
        monkeypatch.setenv(cpu.SWITCH, "off")
    exchanged, exchange = [], choices.exchange
    monkeypatch.setattr(choices, "exchange", lambda *of: (exchanged.append(of), exchange(*of)))
    model = LVLM.load(tiny_package, backend="ort-cpu", threads=1)
    for draw in range(DRAWS):
        one = sample("caption", "held-out", draw)
        got = model.generate(
            one.prompt,
            [one.image],
            policy=policy,
            max_new_tokens=STEPS,
            return_logits=True,
            return_placements=True,
        )
        rules = Rules(split=SplitRule(0.9, 0.45, 2))
        if isinstance(policy, Stairs):
            rules = Rules(split=SplitRule(0.9, 0.9, 99), text=TextRule(0.5, 4, 0.5))
        kind = DeepOracle if policy == Pyramid(text=True) else Oracle
        oracle = kind(load_reference(AVL_TINY), rules, ByDepth(policy))
        with torch.inference_mode():
            logits = [oracle.turn(encode(AVL_TINY, one.prompt, [one.image]))]
            logits += [oracle.step(token) for token in got.token_ids[:-1]]
        if oracle.ranking.gap <= CLEAR:
            continue
        assert np.abs(got.logits - torch.stack(logits).numpy()).max() < TOLERANCE
        assert [place.step for place in got.placements] == [place.step for place in oracle.places]
        for ours, theirs in zip(got.placements, oracle.places, strict=True):
            np.testing.assert_array_equal(ours.core, theirs.core)
            np.testing.assert_array_equal(ours.parked, theirs.parked)
        # Cores of one size are refreshed by the kernel, though layers park different numbers.
        assert (not exchanged) == (
            policy == Stairs() or (policy == Pyramid(fixed=True) and kernels_on)
        )
        return
    pytest.fail(f"no draw with clear rankings among {DRAWS}")

"""Image tokens chosen before the decoder: against transformers' own, in kinds of families."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from avl_plugins.policies import Chain, Policy, Selecting, parse
from families.support import Made, clip
from oracle.hf_oracle import Oracle
from oracle.merging import anchors, merged, of_turn
from oracle.reading import Shown, closed_up, cut, read
from oracle.rules_of import rules_of
from oracle.selecting import METHODS, Draws, evs

PROMPT = "What is in the picture? Read the text."
STEPS = 5
TOLERANCE = 1e-4  # of logits
CLEAR = 3e-5  # gaps of scores above which float32 noise cannot change a choice


class ChosenTests:
    """What must hold of policies that choose tokens before the decoder, beside `FamilyTests`.

    Where layouts and positions differ: line breaks, M-RoPE, deepstack, tiles among text, tokens
    that see one another.
    """

    choosing: ClassVar[tuple[str, ...]] = (
        "divprune:tokens=9",
        "mmtok:keep=0.4+avl:keep=0.6,core=0.3,refresh=2",
        "divprune:tokens=7,positions=renumber",
    )

    def test_tokens_chosen_before_the_decoder_are_as_if_the_others_were_not_there(
        self, made: Made
    ) -> None:
        for spec in self.choosing:
            for images in self._draws():
                policy = parse(spec)
                whole = read(made.reference, made.encode(PROMPT, images))
                shown, gap = left_by(made, policy, whole, images)
                if gap < CLEAR:
                    continue
                got = made.model.generate(
                    PROMPT,
                    images,
                    policy=policy,
                    max_new_tokens=STEPS,
                    return_logits=True,
                    return_placements=True,
                )
                restores = any(one.restores for one in policy.actions())
                oracle = Oracle(made.reference, rules_of(policy), restore=restores)
                with torch.inference_mode():
                    logits = [oracle.turn(shown)]
                    logits += [oracle.step(token) for token in got.token_ids[:-1]]
                if oracle.ranking.gap < CLEAR:
                    continue
                expected = torch.stack(logits).numpy()
                np.testing.assert_allclose(got.logits, expected, atol=TOLERANCE, rtol=0)
                assert got.stats.visual_tokens == int(whole.visual.sum())
                assert got.stats.visual_tokens_read == int(shown.visual.sum())
                # What a window leaves of a picture is not what a policy decides.
                layers = [window is None for window in oracle.windows]
                for ours, theirs in zip(got.placements, oracle.places, strict=True):
                    read_of = ours.core | ours.parked
                    same = read_of.sum(1) == (theirs.core | theirs.parked).sum(1)
                    assert same[layers].all()
                break
            else:
                pytest.fail(f"{spec}: no draw with clear choices")

    def _draws(self) -> list[list[Image.Image]]:
        raise NotImplementedError


class ChosenVideoTests(ChosenTests):
    """The same of families that read videos."""

    films: ClassVar[tuple[tuple[tuple[int, tuple[int, int]], ...], ...]]

    def test_of_a_video_evs_leaves_its_first_frame_and_what_changes(self, made: Made) -> None:
        count, size = self.films[0][0]
        draws = [[clip(count, size, seed)] for seed in range(8)]
        for videos in draws:
            whole = read(made.reference, made.encode(PROMPT, [], videos))
            (media,) = made.model.processor.encode(PROMPT, [], videos).media
            frames = int(media.cells.places[0].max()) + 1
            features = whole.embeds[whole.visual].double().numpy()
            clear = Draws()
            some = evs(
                features.reshape(frames, -1, features.shape[1]), round(0.7 * media.tokens), clear
            )
            if clear.gap < CLEAR:
                continue
            keep = ~whole.visual
            keep[torch.nonzero(whole.visual)[some, 0]] = True
            got = made.model.generate(
                PROMPT, [], videos, policy="evs:keep=0.7", max_new_tokens=STEPS, return_logits=True
            )
            oracle = Oracle(made.reference, rules_of(parse("dense")))
            with torch.inference_mode():
                logits = [oracle.turn(cut(whole, keep))]
                logits += [oracle.step(token) for token in got.token_ids[:-1]]
            expected = torch.stack(logits).numpy()
            np.testing.assert_allclose(got.logits, expected, atol=TOLERANCE, rtol=0)
            assert got.stats.visual_tokens_read == len(some) < media.tokens
            return
        pytest.fail("no draw with clear choices")


def left_by(
    made: Made, policy: Policy, whole: Shown, images: list[Image.Image]
) -> tuple[Shown, float]:
    """What a policy leaves of a prompt, as `oracle.selecting` says, and how clearly."""
    parts = policy.policies if isinstance(policy, Chain) else (policy,)
    (method,) = [part for part in parts if isinstance(part, Selecting)]
    words = made.model.processor.tokenizer.encode(PROMPT, add_special_tokens=False).ids
    table = made.reference.get_input_embeddings().weight
    question = table[torch.tensor(words)].detach().double().numpy()
    visual = torch.nonzero(whole.visual)[:, 0]
    keep = ~whole.visual.clone()
    features = whole.embeds.double().numpy()
    draws, begin = Draws(), 0
    groups: dict[int, list[int]] = {}
    for media in made.model.processor.encode(PROMPT, images).media:
        at = visual[begin : begin + media.tokens].numpy()
        begin += media.tokens
        breaks = media.cells.places[0] < 0
        newline = getattr(made.reference.model, "image_newline", None)
        if newline is not None and breaks.any():
            alike = newline.detach().double().expand(int(breaks.sum()), -1).numpy()
            np.testing.assert_allclose(features[at[breaks]], alike, atol=1e-5)
        budget = method.tokens or round((method.keep or 0.25) * len(at))
        count = min(max(1, budget - int(breaks.sum())), int((~breaks).sum()))
        own = count if method.gamma == 1 else max(1, round(method.gamma * count))
        some = METHODS[method.name](features[at[~breaks]], question, own, draws)
        if own < count:
            found = anchors(features[at[~breaks]], some, count - own, draws)
            groups |= of_turn(found, at[~breaks])
            some = [*some, *found]
        keep[at[breaks]] = True
        keep[at[~breaks][some]] = True
    left = cut(merged(whole, groups, method.positions != "renumber"), keep)
    if method.positions == "renumber":
        counts = [one.tokens for one in made.model.processor.encode(PROMPT, images).media]
        left = replace(left, positions=closed_up(whole, keep, counts)[:, keep])
    return left, draws.gap

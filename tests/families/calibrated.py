"""CAAC (arXiv 2505.21472): steps computed again, against transformers' attention, raised in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from avl_plugins.policies import CAAC, Chain, Dense, Policy, Selecting, parse
from avl_runtime import LVLM
from avl_runtime.prompts.option_values import OptionError
from families.chosen import left_by
from families.shared import with_ids
from families.support import Made, picture
from oracle.evening import factors_of
from oracle.hf_oracle import Oracle
from oracle.reading import read
from oracle.rules_of import rules_of
from support.appended import appended_prompts

PROMPT, STEPS = "What is in the picture?", 9
TOLERANCE = 1e-4  # of logits
CLEAR = 3e-5  # gaps of scores above which float32 noise cannot change a choice
SURE = 1e-4  # gaps of probabilities above which it cannot change what is computed again
EVENED = 2  # layers
MOST = 40.0  # as random models look at pictures little


class CalibratedTests:
    """One axis of positions, M-RoPE, and M-RoPE of other axes with deepstack."""

    chains: ClassVar[tuple[str, ...]] = (
        "dense",
        "avl:keep=0.6,core=0.3,refresh=2,text=0.6,text_min=4",
        "divprune:keep=0.7,positions=restore+fastv:layer=2,keep=0.5",
    )

    def test_unsure_steps_are_computed_again_with_more_of_the_picture(self, made: Made) -> None:
        for spec in self.chains:
            for seed in range(8):
                images = [picture((97, 61), seed), picture((64, 64), seed + 9)]
                policy = calibrated(made.model, images, spec)
                whole = read(made.reference, made.encode(PROMPT, images))
                chooses = "divprune" in spec
                shown, gap = left_by(made, policy, whole, images) if chooses else (whole, 1.0)
                got = asked(made.model, images, policy)
                oracle = oracle_of(made, policy)
                with torch.inference_mode():
                    logits = [oracle.turn(shown)]
                    logits += [oracle.step(token) for token in got.token_ids[:-1]]
                if min(gap, oracle.ranking.gap) < CLEAR or not clear(oracle):
                    continue
                same(got.logits, logits)
                assert 0 < int((oracle.factors != 1).sum()) < STEPS - 1
                plain = asked(made.model, images, spec)
                assert np.abs(got.logits - plain.logits).max() > 10 * TOLERANCE
                break
            else:
                pytest.fail(f"{spec}: no draw with clear choices")

    def test_a_later_turn_has_its_own_second_looks(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first turn shows no picture, and so is dense attention's."""
        policy = CAAC(1.0, MOST)
        plain = made.model.generate("Hello?", policy="dense", max_new_tokens=4, return_logits=True)
        appended, images = appended_prompts(monkeypatch), [picture((97, 61))]
        chat = made.model.chat(policy=policy)
        first = chat.send("Hello?", max_new_tokens=4, return_logits=True)
        np.testing.assert_array_equal(first.logits, plain.logits)
        second = chat.send(PROMPT, images=images, max_new_tokens=4, return_logits=True)
        third = chat.send("And?", max_new_tokens=4, return_logits=True)
        oracle = oracle_of(made, policy)
        with torch.inference_mode():
            oracle.turn(made.encode("Hello?"))
            for token in first.token_ids[:-1]:
                oracle.step(token)
            for before, got, prompt, shown in (
                (first, second, appended[-2], images),
                (second, third, appended[-1], []),
            ):
                ids = [before.token_ids[-1], *prompt.input_ids.tolist()]
                logits = [oracle.turn(with_ids(made, made.encode(PROMPT, shown), ids))]
                logits += [oracle.step(token) for token in got.token_ids[:-1]]
                same(got.logits, logits)
        assert int((oracle.factors != 1).sum()) == 6

    def test_each_of_a_batch_is_computed_again_by_its_own_confidence(self, made: Made) -> None:
        """Beside others that are not, cores drawn in the same steps, and one without a picture."""
        images = [[picture((97, 61), seed)] for seed in range(3)]
        policies = [
            calibrated(made.model, images[0], "avl:keep=0.6,core=0.3,refresh=2"),
            parse("avl:keep=0.6,core=0.3,refresh=2"),
            CAAC(1.0, MOST),
            CAAC(1.0, MOST),
        ]
        found = made.model.generate_batch(
            [PROMPT] * 4,
            [*images, []],
            policies=policies,
            max_new_tokens=STEPS,
            return_logits=True,
        )
        for got, shown, policy in zip(found, [*images, []], policies, strict=True):
            alone = asked(made.model, shown, policy)
            np.testing.assert_allclose(got.logits, alone.logits, atol=TOLERANCE, rtol=0)
        plain = asked(made.model, [], "dense")
        np.testing.assert_allclose(found[3].logits, plain.logits, atol=TOLERANCE, rtol=0)
        again = [one.stats.steps_again for one in found]
        assert 0 < again[0] < STEPS - 1 and again[1:] == [0, STEPS - 1, 0]

    def test_attention_is_evened_out_as_a_white_picture_says(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In some layers, for rows behind the last picture and a later turn's, beside the gate."""
        sizes, even = ((97, 61), (64, 64)), CAAC(1.0, 3.0, 1.0, EVENED)
        whites = made.encode("default query", [Image.new("RGB", one, "white") for one in sizes])
        chains = ("dense", "divprune:keep=0.7,positions=restore+fastv:layer=2,keep=0.5")
        for spec in chains:
            for seed in range(8):
                images = [picture(size, seed + 9 * at) for at, size in enumerate(sizes)]
                whole = read(made.reference, made.encode(PROMPT, images))
                rest = parse(spec)
                policy = even if isinstance(rest, Dense) else Chain(even, rest)
                chooses = "divprune" in spec
                shown, gap = left_by(made, policy, whole, images) if chooses else (whole, 1.0)
                appended = appended_prompts(monkeypatch)
                chat = made.model.chat(policy=policy)
                got = chat.send(PROMPT, images, max_new_tokens=STEPS, return_logits=True)
                second = chat.send("And?", max_new_tokens=3, return_logits=True)
                oracle = oracle_of(made, policy)
                tokens = [one.tokens for one in made.model.processor.encode(PROMPT, images).media]
                tables = factors_of(made.reference, whites, tokens, 1.0, EVENED)
                given = torch.from_numpy(np.asarray(got.dropped_before) != 0)
                keys = torch.nonzero(shown.visual)[:, 0]
                tables = {layer: table[:, given] for layer, table in tables.items()}
                oracle.evens.append((int(keys[-1]) + 1, keys, tables))
                with torch.inference_mode():
                    logits = [oracle.turn(shown)]
                    logits += [oracle.step(token) for token in got.token_ids[:-1]]
                    ids = [got.token_ids[-1], *appended[-1].input_ids.tolist()]
                    more = [oracle.turn({"input_ids": torch.tensor([ids])})]
                    more += [oracle.step(token) for token in second.token_ids[:-1]]
                if min(gap, oracle.ranking.gap) < CLEAR:
                    continue
                same(got.logits, logits)
                same(second.logits, more)
                plain = asked(
                    made.model, images, Chain(CAAC(1.0, 3.0), rest) if chooses else "dense"
                )
                assert np.abs(got.logits[0] - plain.logits[0]).max() > 10 * TOLERANCE
                break
            else:
                pytest.fail(f"{spec}: no draw with clear choices")

    def test_each_of_a_batch_is_evened_out_by_itself(self, made: Made) -> None:
        images = [[picture((97, 61), 1)], [picture((97, 61), 2)], []]
        policies = [CAAC(0.0, 1.0, 1.0, EVENED), parse("dense"), CAAC(0.0, 1.0, 1.0, EVENED)]
        found = made.model.generate_batch(
            [PROMPT] * 3, images, policies=policies, max_new_tokens=STEPS, return_logits=True
        )
        for got, shown, policy in zip(found, images, policies, strict=True):
            alone = asked(made.model, shown, policy)
            np.testing.assert_allclose(got.logits, alone.logits, atol=TOLERANCE, rtol=0)
        plain = asked(made.model, [], "dense")
        np.testing.assert_array_equal(asked(made.model, [], policies[0]).logits, plain.logits)

    def test_drafts_are_refused(self, made: Made) -> None:
        with pytest.raises(OptionError, match=r"expected a policy whose steps are computed once"):
            made.model.generate(PROMPT, policy="caac", prompt_lookup=4)

    def test_drafts_are_checked_with_what_is_evened_out(self, made: Made) -> None:
        """The gate is shut, so that steps are computed once."""
        told: dict[str, Any] = {
            "policy": CAAC(0.0, 1.0, 1.0, EVENED),
            "max_new_tokens": 64,
            "return_logits": True,
        }
        shown = [picture((97, 61), 1)]
        plain = made.model.generate(PROMPT, shown, **told)
        got = made.model.generate(PROMPT, shown, **told, prompt_lookup=3)
        assert got.token_ids == plain.token_ids and got.stats.drafted > 0
        np.testing.assert_allclose(got.logits, plain.logits, atol=TOLERANCE, rtol=0)


def asked(model: LVLM, images: Sequence[Image.Image], policy: Policy | str) -> Any:
    return model.generate(
        PROMPT, list(images), policy=policy, max_new_tokens=STEPS, return_logits=True
    )


def calibrated(model: LVLM, images: Sequence[Image.Image], spec: str) -> Policy:
    """A chain with CAAC, whose threshold lies where the confidences of a reply are farthest."""
    logits = torch.from_numpy(asked(model, images, spec).logits[1:]).double()
    sure = np.sort(logits.softmax(-1).amax(-1).numpy())
    at = 2 + int(np.argmax(np.diff(sure[2:-2])))
    caac, rest = CAAC(float(sure[at : at + 2].mean()), MOST), parse(spec)
    return caac if isinstance(rest, Dense) else Chain(caac, rest)


def oracle_of(made: Made, policy: Policy) -> Oracle:
    parts = policy.policies if isinstance(policy, Chain) else (policy,)
    caac = next(one for one in parts if isinstance(one, CAAC))
    rest = [one for one in parts if one is not caac and not isinstance(one, Selecting)]
    rules = rules_of(rest[0] if rest else Dense())
    restores = any(action.restores for action in policy.actions())
    return Oracle(made.reference, rules, restore=restores, gate=(caac.below, caac.most))


def clear(oracle: Oracle) -> bool:
    """Whether no confidence is close to the threshold."""
    below, _ = oracle.gate
    return min(abs(sure - below) for sure in oracle.confidences) > SURE * below


def same(got: np.ndarray, expected: list[torch.Tensor]) -> None:
    np.testing.assert_allclose(got, torch.stack(expected).numpy(), atol=TOLERANCE, rtol=0)

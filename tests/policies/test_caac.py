"""CAAC's gate, and what it is refused with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from avl_export.options import Options, OptionsError
from avl_plugins.errors import PolicyError
from avl_plugins.policies import CAAC, Action, Calibrate, Policy, Rescale, When, parse
from avl_runtime import LVLM
from avl_runtime.generate.weighing import confidence_of, weights_of


@dataclass(frozen=True)
class Weighing(Rescale):
    """One that gives whatever it is told."""

    found: Any = 1.0

    def weight(self, confidence: float) -> float:
        return self.found


@dataclass(frozen=True)
class Late(Weighing):
    when: ClassVar[frozenset[When]] = frozenset({When.PROMPT})


@dataclass(frozen=True)
class Given(Policy):
    parts: tuple[Action, ...] = ()
    name: ClassVar[str] = "given"

    def actions(self) -> tuple[Action, ...]:
        return self.parts


def test_the_factor_is_the_papers() -> None:
    action = Rescale(0.25, 1.5)
    assert [action.weight(sure) for sure in (1.0, 0.26)] == [1, 1]
    assert action.weight(0.25) == 0.25 * 1 + 0.75 * 1.5
    assert action.weight(0.0) == 1.5
    assert Rescale(1.0, 1.5).weight(1.0) == 1.0


def test_confidence_is_the_probability_of_the_likeliest_token() -> None:
    rng = np.random.default_rng(0)
    for scale in (0.1, 3, 400):
        logits = (scale * rng.standard_normal(50)).astype(np.float32)
        wide = np.exp(logits.astype(np.longdouble) - logits.max())
        assert confidence_of(logits) == pytest.approx(float(wide.max() / wide.sum()), rel=1e-12)


def test_only_unsure_sequences_with_pictures_are_computed_again() -> None:
    logits = np.zeros((4, 8), np.float32)
    logits[1, 3] = 30
    due = [(Rescale(0.25, 1.5),), (Rescale(0.25, 1.5),), (Rescale(0.25, 1.5),), ()]
    assert weights_of(due, logits, [5, 5, 0, 5]) == {0: 0.125 + 0.875 * 1.5}


@pytest.mark.parametrize("found", [0, -1.0, 1e9, float("nan"), "2", None])
def test_weights_that_mean_nothing_are_refused(found: Any) -> None:
    with pytest.raises(PolicyError, match=r"Weighing: expected a number from 0\.001 to 1000 from"):
        weights_of([(Weighing(0.5, 2.0, found),)], np.zeros((1, 4), np.float32), [5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caac:below=1.5", "caac: expected below from 0 to 1, found 1.5"),
        ("caac:most=0.5", "caac: expected most from 1 to 1000, found 0.5"),
        ("caac+caac:most=2", "both to say how much image tokens count in a step"),
    ],
)
def test_values_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse(text)


def test_what_it_stands_beside() -> None:
    for text in ("avl", "fastv", "snapkv", "avl:text=0.5", "divprune:positions=restore", "akvq"):
        policy = parse(f"{text}+caac:most=2")
        policy.check((2,))
        assert policy.biases and parse(str(policy)) == policy
    with pytest.raises(PolicyError, match=r"expected steps that are computed once, .* Rescale"):
        parse("avl:exact+caac").check((2,))
    with pytest.raises(PolicyError, match=r"expected Late to decide after decode steps"):
        Given((Late(0.5, 2.0),)).check((2,))
    with pytest.raises(PolicyError, match=r"expected an action that parks rows for Refresh"):
        Given((CAAC().actions()[0], parse("avl").actions()[1])).check((2,))


def test_packages_that_take_no_bias_are_refused(tiny: LVLM) -> None:
    with pytest.raises(PolicyError, match=r"caac: expected a package whose attention can be bias"):
        tiny.generate("Hello", policy="caac")
    with pytest.raises(OptionsError, match=r"--policy caac: expected --restore with it"):
        Options("avl-tiny", Path("x.avl"), policy="caac")


@pytest.mark.parametrize("beta", [0.0, 0.7, 1.0])
def test_counts_are_the_papers(beta: float) -> None:
    rng = np.random.default_rng(1)
    given = rng.random((3, 2, 5)).astype(np.float32) + 1e-3
    counts = Calibrate(beta, 4).evened(given, 3)
    assert counts is not None
    for head in range(2):
        for token in range(5):
            rows = [given[row, head].astype(float) for row in range(3)]
            each = [((1 - beta) * row[token] + beta * sum(row) / 5) / row[token] for row in rows]
            assert counts[head, token] == pytest.approx(sum(each) / 3, rel=1e-12)
    assert Calibrate(beta, 4).evened(given, 4) is None


def test_attention_that_is_nearly_nothing_counts_for_so_many_and_no_more() -> None:
    tiny = np.full((3, 1, 2), np.finfo(np.float32).tiny)
    tiny[..., 0] = 0.5
    counts = Calibrate(1.0, 1).evened(tiny, 0)
    assert counts is not None and counts.tolist() == [[pytest.approx(0.5), 1000.0]]


def test_calibration_is_asked_for_by_beta_and_refused_beside_parked_rows() -> None:
    assert [type(one) for one in parse("caac").actions()] == [Rescale]
    assert parse("caac:beta=0.7").actions() == (Calibrate(0.7, 10), Rescale(0.25, 1.5))
    assert parse("caac:beta=0.7,below=0").actions() == (Calibrate(0.7, 10),)
    assert parse("caac:below=0").actions() == ()
    for text in ("fastv", "snapkv", "divprune:positions=restore,gamma=0.5"):
        parse(f"{text}+caac:beta=0.7").check((2,))
    for text in ("avl", "akvq"):
        with pytest.raises(PolicyError, match=r"expected a policy that parks no rows beside Calib"):
            parse(f"{text}+caac:beta=0.7").check((2,))
    with pytest.raises(PolicyError, match="caac: expected beta from 0 to 1, found 2"):
        parse("caac:beta=2")
    with pytest.raises(PolicyError, match="caac: expected layers to be a whole number"):
        parse("caac:beta=0.5,layers=0")

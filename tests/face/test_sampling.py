"""Sampling against transformers' logits processors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from avl_runtime.sampling import Sampler, SamplingError

CASES = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.7, "top_k": 5},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.7, "repetition_penalty": 1.3},
    {"temperature": 1.2, "repetition_penalty": 0.6},
]


def oracle(logits: np.ndarray, seen: list[int], case: dict[str, float]) -> np.ndarray:
    rules = LogitsProcessorList()
    if "repetition_penalty" in case:
        rules.append(RepetitionPenaltyLogitsProcessor(case["repetition_penalty"]))
    rules.append(TemperatureLogitsWarper(case["temperature"]))
    if "top_k" in case:
        rules.append(TopKLogitsWarper(int(case["top_k"])))
    if "top_p" in case:
        rules.append(TopPLogitsWarper(case["top_p"]))
    scores = rules(torch.tensor([seen]), torch.from_numpy(logits)[None].double())
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_probabilities_equal_transformers(case: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = rng.normal(0, 3, 200).astype(np.float32)
        seen = [int(token) for token in rng.integers(0, 200, 30)]
        found = Sampler(**case).probabilities(logits, seen)  # type: ignore[arg-type]
        wanted = oracle(logits, seen, case)
        np.testing.assert_array_equal(found > 0, wanted > 0)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-12)


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    sampler = Sampler(temperature=1.0, seed=3)
    counts = np.bincount([sampler(logits, ()) for _ in range(8000)], minlength=4) / 8000
    np.testing.assert_allclose(counts, [0.5, 0.25, 0.125, 0.125], atol=0.02)


def test_seed_decides_the_draws() -> None:
    logits = np.zeros(1000, np.float32)

    def draws(seed: int) -> list[int]:
        sampler = Sampler(temperature=1.0, seed=seed)
        return [sampler(logits, ()) for _ in range(5)]

    assert draws(7) == draws(7) != draws(8)


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = np.array([0, 2, 1, 2], np.float32)
    assert Sampler()(logits, ()) == 1
    assert Sampler(repetition_penalty=2.0)(logits, [1, 1]) == 3
    np.testing.assert_array_equal(Sampler().probabilities(logits, ()), [0, 1, 0, 0])


def test_extreme_values() -> None:
    logits = np.array([1e4, -1e4, -math.inf], np.float32)
    assert Sampler(temperature=1e-300)(logits, ()) == 0
    assert Sampler(temperature=1.0, top_k=1)(logits, ()) == 0
    for bad in ([math.nan, 0], [math.inf, 0], [-math.inf, -math.inf]):
        with pytest.raises(SamplingError, match="finite"):
            Sampler()(np.array(bad, np.float32), ())


@pytest.mark.parametrize(
    "option",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"seed": -1},
    ],
    ids=str,
)
def test_values_out_of_range(option: dict[str, float]) -> None:
    with pytest.raises(SamplingError, match=next(iter(option))) as caught:
        Sampler(**option)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)

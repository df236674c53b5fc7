"""Sampling against transformers' logits processors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from avl_runtime.generate.sampling import Sampler, SamplingError

CASES = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.7, "top_k": 5},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.7, "repetition_penalty": 1.3},
    {"temperature": 1.2, "repetition_penalty": 0.6},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.5, "min_p": 1.0},
    {"temperature": 0.8, "top_k": 30, "top_p": 0.95, "min_p": 0.1},
]
END = (2, 7)
RULES = [
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"bad_words_ids": [[5], [7], [4, 6], [3, 3, 8], [9] * 90]},
    {"suppress_tokens": [1, 2, 11, 500]},
    {"begin_suppress_tokens": [3, 4, 5]},
    {"min_length": 63},
    {"min_new_tokens": 4},
    {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[5], [4, 6]],
        "min_new_tokens": 5,
        "suppress_tokens": [1],
        "begin_suppress_tokens": [3, 4],
    },
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
    if "min_p" in case:
        rules.append(MinPLogitsWarper(case["min_p"]))
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


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 12.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_probabilities_of_a_whole_vocabulary(case: dict[str, float], spread: float) -> None:
    """From all alike, where the order among equals counts, to one that has nearly everything."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, spread, 32_001).astype(np.float32)
    found = Sampler(**case).probabilities(logits, [5, 6, 7])  # type: ignore[arg-type]
    wanted = oracle(logits, [5, 6, 7], case)
    if spread:
        np.testing.assert_array_equal(found > 0, wanted > 0)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-12)
    else:
        assert abs((found > 0).sum() - (wanted > 0).sum()) <= 1
        np.testing.assert_allclose(np.sort(found), np.sort(wanted), rtol=1e-3)


@pytest.mark.parametrize("case", RULES, ids=str)
def test_rules_equal_those_that_generate_makes(case: dict[str, Any]) -> None:
    """Its own list of processors, so that their order is its own too."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=12, num_attention_heads=1, **small)
    model = LlamaForCausalLM(config)
    rng = np.random.default_rng(1)
    for said in (0, 1, 3, 4, 5, 30):
        seen = [int(token) for token in rng.integers(0, 12, 60 + said)]
        settings = GenerationConfig(**case, eos_token_id=list(END), do_sample=True, top_k=0)
        model._prepare_special_tokens(settings, device="cpu")
        rules = model._get_logits_processor(settings, 60, device="cpu", model_kwargs={})
        sampler = Sampler(1.0, **case, eos=END)
        for _ in range(5):
            logits = rng.normal(0, 3, 12).astype(np.float32)
            scores = rules(torch.tensor([seen]), torch.from_numpy(logits)[None].double())
            if scores.isinf().all():
                with pytest.raises(SamplingError, match="found none"):
                    sampler.probabilities(logits, seen, said)
                continue
            found = sampler.probabilities(logits, seen, said)
            wanted = scores.softmax(-1)[0].numpy()
            np.testing.assert_array_equal(found > 0, wanted > 0)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-12)
            greedy = Sampler(**case, eos=END)(logits, seen, said)
            assert greedy == int(scores.argmax())


def test_presence_and_frequency_count_the_reply_alone() -> None:
    """As OpenAI defines them: mu[j] - c[j] * frequency - (c[j] > 0) * presence."""
    logits = np.arange(6, dtype=np.float32)
    seen, said = [0, 5, 5, 1, 2, 2, 3, 2, 99], 6
    wanted = logits.astype(np.float64)
    for token, times in ((1, 1), (2, 3), (3, 1)):
        wanted[token] -= times * 0.75 + 0.5
    sampler = Sampler(1.0, presence_penalty=0.5, frequency_penalty=0.75)
    wanted = np.exp(wanted) / np.exp(wanted).sum()
    np.testing.assert_allclose(sampler.probabilities(logits, seen, said), wanted, rtol=1e-12)
    assert sampler.probabilities(logits, seen, 0).argmax() == 5


def test_a_bias_is_added_before_all_else() -> None:
    logits = np.array([1.0, 2.0, -1.0], np.float32)
    sampler = Sampler(1.0, logit_bias={0: 3.0, 2: -1.0}, repetition_penalty=2.0)
    wanted = np.exp([4.0 / 2, 2.0, -2.0 * 2])
    found = sampler.probabilities(logits, [0, 2], 0)
    np.testing.assert_allclose(found, wanted / wanted.sum(), rtol=1e-12)


def test_tokens_beyond_the_logits_are_passed_over() -> None:
    """Visual tokens may have ids that the head has no row for."""
    logits = np.array([1.0, 2.0], np.float32)
    seen = [1, 700, 700]
    rules = {"repetition_penalty": 4.0, "frequency_penalty": 1.0, "no_repeat_ngram_size": 1}
    assert Sampler(**rules)(logits, seen, 1) == 0  # type: ignore[arg-type]
    assert Sampler(suppress_tokens=[700], bad_words_ids=[[700]])(logits, seen, 0) == 1


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
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -math.inf},
        {"no_repeat_ngram_size": -1},
        {"top_k": 2.5},
    ],
    ids=str,
)
def test_values_out_of_range(option: dict[str, float]) -> None:
    with pytest.raises(SamplingError, match=next(iter(option))) as caught:
        Sampler(**option)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)

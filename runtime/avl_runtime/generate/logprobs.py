"""Log probabilities of tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from avl_runtime.generate.results import Logprob, TokenLogprobs


def token_logprobs(
    logits: NDArray[np.float32], token: int, top: int, tokenizer: Tokenizer
) -> TokenLogprobs:
    """How probable a chosen token and the likeliest ones were, by the model's own logits.

    Args:
        logits: [V], before any sampling rule.
        top: how many of the likeliest to note; of equal ones those of the smallest ids.
    """
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())

    def noted(one: int) -> tuple[int, str, float]:
        return one, str(tokenizer.decode([one], skip_special_tokens=False)), float(scores[one])

    likeliest = [Logprob(*noted(one)) for one in _largest(scores, min(top, scores.size))]
    return TokenLogprobs(*noted(token), tuple(likeliest))


def _largest(scores: NDArray[np.float64], count: int) -> list[int]:
    """Where the largest scores are, in descending order."""
    if not count:
        return []
    threshold = np.partition(scores, -count)[-count]
    candidates = np.flatnonzero(scores >= threshold)
    order = np.argsort(-scores[candidates], kind="stable")
    return [int(one) for one in candidates[order][:count]]

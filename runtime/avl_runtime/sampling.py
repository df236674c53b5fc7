"""The choice of the next token from logits, in the order of Hugging Face's `generate`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cpu.logits import Logits
from avl_plugins.errors import AvlError

Floats = NDArray[np.float64]


class SamplingError(AvlError):
    """A sampling option is out of range, or the logits are unusable."""


class Sampler:
    """Repetition penalty, temperature, top-k, top-p, then one draw; temperature 0 is greedy.

    The same seed gives the same draws on every machine (PCG64), one draw a call.

    Attributes:
        reads: which logits its choice needs.

    Raises:
        SamplingError: an option is out of range.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> None:
        _check("temperature", temperature, temperature >= 0, "a number of at least 0 (0 is greedy)")
        _check("top_k", top_k, top_k >= 0 and int(top_k) == top_k, "a whole number (0 is off)")
        _check("top_p", top_p, 0 < top_p <= 1, "a number in (0, 1] (1 is off)")
        _check(
            "repetition_penalty",
            repetition_penalty,
            repetition_penalty > 0,
            "a number above 0 (1 is off)",
        )
        _check("seed", seed, seed >= 0 and int(seed) == seed, "a whole number of at least 0")
        self.temperature = float(temperature)
        self.top_k = int(top_k)
        self.top_p = float(top_p)
        self.repetition_penalty = float(repetition_penalty)
        plain = self.temperature == 0 and self.repetition_penalty == 1
        self.reads = Logits.LARGEST if plain else Logits.ALL
        self._generator = np.random.Generator(np.random.PCG64(int(seed)))

    def __call__(self, logits: NDArray[np.floating], seen_ids: Sequence[int]) -> int:
        """The next token.

        Args:
            logits: [V], those that it `reads`.
            seen_ids: prompt and generated tokens so far, for the repetition penalty.

        Raises:
            SamplingError: the logits hold NaN or no finite value.
        """
        if self.temperature == 0:
            # Without a penalty no copy is made: this is what most tokens come from.
            plain = self.reads is Logits.LARGEST
            scores = logits if plain else self._penalized(logits, seen_ids)
            best = int(scores.argmax())
            _check_finite(scores.item(best))  # argmax finds a NaN if there is one
            return best
        weights = self.probabilities(logits, seen_ids)
        alive = np.flatnonzero(weights)
        summed = np.cumsum(weights[alive])
        place = int(np.searchsorted(summed, self._generator.random() * summed[-1], side="right"))
        return int(alive[min(place, alive.size - 1)])

    def probabilities(self, logits: NDArray[np.floating], seen_ids: Sequence[int]) -> Floats:
        """Probability of every token [V]; greedy decoding puts 1 on its choice."""
        scores = self._penalized(logits, seen_ids)
        if self.temperature == 0:
            greedy: Floats = np.zeros(scores.shape)
            greedy[np.argmax(scores)] = 1.0
            return greedy
        # The largest score becomes 0 first, so that a tiny temperature cannot overflow.
        scores = (scores - scores.max()) / self.temperature
        if 0 < self.top_k < scores.size:
            threshold = np.partition(scores, -self.top_k)[-self.top_k]
            scores[scores < threshold] = -np.inf
        weights: Floats = np.exp(scores)
        weights /= weights.sum()
        if self.top_p < 1:
            ascending = np.argsort(weights, kind="stable")
            tail = np.cumsum(weights[ascending]) <= 1 - self.top_p
            tail[-1] = False  # one token always stays
            weights[ascending[tail]] = 0.0
            weights /= weights.sum()
        return weights

    def _penalized(self, logits: NDArray[np.floating], seen_ids: Sequence[int]) -> Floats:
        scores: Floats = logits.astype(np.float64)
        _check_finite(float(scores.max()))
        if self.repetition_penalty != 1 and len(seen_ids) > 0:
            seen = np.unique(np.asarray(seen_ids, np.int64))
            rated = scores[seen]
            factor = self.repetition_penalty
            scores[seen] = np.where(rated < 0, rated * factor, rated / factor)
        return scores


def _check_finite(largest: float) -> None:
    if not math.isfinite(largest):
        raise SamplingError(
            "expected finite logits, found NaN or infinity; the weights or the dtype are at "
            "fault, check the package with avl-export --check"
        )


def _check(name: str, value: float, fits: bool, expected: str) -> None:
    if not fits or not math.isfinite(value):
        raise SamplingError(f"{name}: expected {expected}, found {value}")

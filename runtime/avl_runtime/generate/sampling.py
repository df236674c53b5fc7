"""The choice of the next token from logits, in the order of Hugging Face's `generate`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from avl_plugins.logits import Logits
from avl_runtime.generate import logit_rules as rules
from avl_runtime.generate.grammars import Constraint
from avl_runtime.generate.logit_rules import Floats, as_ids
from avl_runtime.prompts.option_values import OptionError, number


class SamplingError(OptionError):
    """A sampling option is out of range, or the logits are unusable."""


class Sampler:
    """Bias, penalties, bans and a grammar, then temperature, top-k, top-p, min-p and one draw.

    Temperature 0 is greedy. The same seed gives the same draws on every machine (PCG64), one draw
    a call. The options are those of `options.Options`.

    Attributes:
        reads: which logits its choice needs.
        seed: of the draws.

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
        *,
        min_p: float = 0.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        no_repeat_ngram_size: int = 0,
        bad_words_ids: Sequence[Sequence[int]] = (),
        min_length: int = 0,
        min_new_tokens: int = 0,
        suppress_tokens: Sequence[int] = (),
        begin_suppress_tokens: Sequence[int] = (),
        eos: Sequence[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        """
        Args:
            eos: the tokens that end a reply, which come no sooner than `min_length` and
                `min_new_tokens` allow.
            constraint: what the reply may be.
        """

        def checked(name: str, value: object) -> float:
            return number(name, value, SamplingError)

        self.temperature = checked("temperature", temperature)
        self.top_k = int(checked("top_k", top_k))
        self.top_p = checked("top_p", top_p)
        self.min_p = checked("min_p", min_p)
        self.repetition_penalty = checked("repetition_penalty", repetition_penalty)
        self.seed = int(checked("seed", seed))
        self._presence = checked("presence_penalty", presence_penalty)
        self._frequency = checked("frequency_penalty", frequency_penalty)
        self._bias = dict(logit_bias or {})
        self._ngram = int(checked("no_repeat_ngram_size", no_repeat_ngram_size))
        self._eos = as_ids(eos)
        # As in `generate`, an end token is no bad word by itself.
        self._words = [
            as_ids(word) for word in bad_words_ids if not (len(word) == 1 and word[0] in eos)
        ]
        self._least = int(checked("min_length", min_length)) if len(eos) else 0
        self._least_new = int(checked("min_new_tokens", min_new_tokens)) if len(eos) else 0
        # How far back rules look, 0 for all that was seen: making an array of it takes time.
        whole = (self.repetition_penalty != 1, self._ngram, self._presence, self._frequency)
        self._reach = 0 if any(whole) else max(map(len, self._words), default=1)
        self._never, self._never_first = as_ids(suppress_tokens), as_ids(begin_suppress_tokens)
        self._constraint = constraint
        self._ruled = bool(
            constraint is not None
            or self.repetition_penalty != 1
            or any((self._presence, self._frequency, self._bias, self._ngram, self._words))
            or any((self._least, self._least_new, self._never.size, self._never_first.size))
        )
        self.reads = Logits.ALL if self._ruled or self.draws else Logits.LARGEST
        self._generator = np.random.Generator(np.random.PCG64(self.seed))

    def ahead(self) -> Sampler:
        """Another one that will choose by the very draws that this one will choose by."""
        if not self.draws:
            return self
        other = copy.copy(self)
        other._generator = copy.deepcopy(self._generator)
        return other

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn, and not the likeliest ones taken."""
        return self.temperature > 0

    def __call__(self, logits: NDArray[np.floating], seen_ids: Sequence[int], said: int = 0) -> int:
        """The next token.

        Args:
            logits: [V], those that it `reads`.
            seen_ids: tokens of the prompt and of the reply so far.
            said: how many of them, at the end, are the reply's.

        Raises:
            SamplingError: the logits hold NaN or no finite value, or the rules leave no token.
        """
        if not self.draws:
            # Without a rule no copy is made: this is what most tokens come from.
            scores = self._changed(logits, seen_ids, said) if self._ruled else logits
            best = int(scores.argmax())
            _check_finite(scores.item(best))  # argmax finds a NaN if there is one
            return best
        weights = self.probabilities(logits, seen_ids, said)
        alive = np.flatnonzero(weights)
        summed = np.cumsum(weights[alive])
        place = int(np.searchsorted(summed, self._generator.random() * summed[-1], side="right"))
        return int(alive[min(place, alive.size - 1)])

    def probabilities(
        self, logits: NDArray[np.floating], seen_ids: Sequence[int], said: int = 0
    ) -> Floats:
        """Probability of every token [V]; greedy decoding puts 1 on its choice."""
        scores = self._changed(logits, seen_ids, said)
        if not self.draws:
            greedy: Floats = np.zeros(scores.shape)
            greedy[np.argmax(scores)] = 1.0
            return greedy
        # The largest score becomes 0 first, so that a tiny temperature cannot overflow.
        with np.errstate(over="ignore"):
            scores = (scores - scores.max()) / self.temperature
        weights: Floats
        if 0 < self.top_k < scores.size:
            largest = np.flatnonzero(scores >= np.partition(scores, -self.top_k)[-self.top_k])
            weights = np.zeros(scores.shape)
            weights[largest] = np.exp(scores[largest])
        else:
            weights = np.exp(scores)
        weights /= weights.sum()
        if self.top_p < 1:
            # All that are this small add up to less than the share that goes; only others need
            # an order, and of a whole vocabulary they are few.
            small = weights < (1 - self.top_p) / (2 * weights.size)
            others = np.flatnonzero(~small)
            ascending = others[np.argsort(weights[others], kind="stable")]
            tail = weights[small].sum() + np.cumsum(weights[ascending]) <= 1 - self.top_p
            tail[-1] = False  # one token always stays
            weights[small] = 0.0
            weights[ascending[tail]] = 0.0
            weights /= weights.sum()
        if self.min_p > 0:
            weights[weights < self.min_p * weights.max()] = 0.0
            weights /= weights.sum()
        return weights

    def _changed(self, logits: NDArray[np.floating], seen_ids: Sequence[int], said: int) -> Floats:
        """A copy of the logits to which the rules have been applied."""
        scores: Floats = logits.astype(np.float64)
        _check_finite(float(scores.max()))
        if not self._ruled:
            return scores
        seen = as_ids(seen_ids[-self._reach :])
        rules.add_bias(scores, self._bias)
        if self.repetition_penalty != 1:
            rules.penalize_seen(scores, seen, self.repetition_penalty)
        if said and (self._presence or self._frequency):
            rules.penalize_said(scores, seen[-said:], self._presence, self._frequency)
        if self._ngram:
            rules.ban_ngrams(scores, seen, self._ngram)
        rules.ban_words(scores, seen, self._words)
        if len(seen_ids) < self._least or said < self._least_new:
            rules.ban(scores, self._eos)
        rules.ban(scores, self._never)
        if not said:
            rules.ban(scores, self._never_first)
        if self._constraint is not None:
            reply = seen_ids[len(seen_ids) - said :]
            rules.ban_others(scores, self._constraint.allowed(reply))
        if scores.max() == -math.inf:
            beside = "" if self._constraint is None else ", or ask for another form of answer"
            raise SamplingError(
                "expected a token that penalties and bans leave, found none; allow some of "
                f"suppress_tokens, begin_suppress_tokens and bad_words_ids{beside}"
            )
        return scores


def _check_finite(largest: float) -> None:
    if not math.isfinite(largest):
        raise SamplingError(
            "expected finite logits, found NaN or infinity; the weights or the dtype are at "
            "fault, check the package with avl-check"
        )

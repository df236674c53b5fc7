"""Measures of a reply against one or more right answers, as the benchmarks define them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from avl_runtime.tasks.metrics import edit_distance

Rate = Callable[[str, Sequence[str]], float]
Corpus = Sequence[Sequence[str]]  # the answers of every case, for measures that weigh words

ANLS_THRESHOLD = 0.5  # ST-VQA, arXiv 1905.13648
CIDER_GRAMS = 4
CIDER_SIGMA = 6.0


def exact_match(corpus: Corpus) -> Rate:
    """1 if the reply equals an answer but for case and space around it."""

    def rate(reply: str, answers: Sequence[str]) -> float:
        return float(any(_plain(reply) == _plain(answer) for answer in answers))

    return rate


def token_f1(corpus: Corpus) -> Rate:
    """F1 of the words that reply and answer share (SQuAD, arXiv 1606.05250); the best answer."""

    def rate(reply: str, answers: Sequence[str]) -> float:
        return max(_f1(_words(reply), _words(answer)) for answer in answers)

    return rate


def anls(corpus: Corpus) -> Rate:
    """Average normalised Levenshtein similarity, 0 below one half (arXiv 1905.13648)."""

    def rate(reply: str, answers: Sequence[str]) -> float:
        best = max(_similarity(_plain(reply), _plain(answer)) for answer in answers)
        return best if best >= ANLS_THRESHOLD else 0.0

    return rate


def cider_d(corpus: Corpus) -> Rate:
    """CIDEr-D (arXiv 1411.5726), from 0 to 10, with the answers of all cases as its corpus."""
    seen: Counter[tuple[str, ...]] = Counter()
    for answers in corpus:
        seen.update({gram for answer in answers for gram in _grams(_words(answer))})
    total = math.log(max(1, len(corpus)))

    def weights(words: list[str]) -> dict[tuple[str, ...], float]:
        return {
            gram: count * (total - math.log(max(1, seen[gram])))
            for gram, count in _grams(words).items()
        }

    def rate(reply: str, answers: Sequence[str]) -> float:
        found = sum(_cider_pair(_words(reply), _words(answer), weights) for answer in answers)
        return 10 * found / len(answers)

    return rate


METRICS: dict[str, Callable[[Corpus], Rate]] = {
    "exact": exact_match,
    "f1": token_f1,
    "anls": anls,
    "cider": cider_d,
}


def _cider_pair(
    reply: list[str],
    answer: list[str],
    weights: Callable[[list[str]], dict[tuple[str, ...], float]],
) -> float:
    ours, theirs = weights(reply), weights(answer)
    penalty = math.exp(-((len(reply) - len(answer)) ** 2) / (2 * CIDER_SIGMA**2))
    similarity = 0.0
    for size in range(1, CIDER_GRAMS + 1):
        left = {gram: value for gram, value in ours.items() if len(gram) == size}
        right = {gram: value for gram, value in theirs.items() if len(gram) == size}
        norms = math.hypot(*left.values()) * math.hypot(*right.values())
        if norms:
            shared = left.keys() & right.keys()
            similarity += sum(min(left[g], right[g]) * right[g] for g in shared) / norms
    return penalty * similarity / CIDER_GRAMS


def _grams(words: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(words[start : start + size])
        for size in range(1, CIDER_GRAMS + 1)
        for start in range(len(words) - size + 1)
    )


def _similarity(left: str, right: str) -> float:
    longest = max(len(left), len(right))
    return 1 - edit_distance(left, right) / longest if longest else 1.0


def _f1(reply: list[str], answer: list[str]) -> float:
    if not reply or not answer:
        return float(reply == answer)
    shared = (Counter(reply) & Counter(answer)).total()
    return 2 * shared / (len(reply) + len(answer))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())

"""SparseVLM's raters, its options, and raters of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from avl_plugins.errors import PolicyError
from avl_plugins.policies import Action, Policy, SparseVLM, parse
from avl_plugins.policies.sparsevlm import RatedPrune
from avl_plugins.policies.view import Indices, Mask, Scores
from avl_runtime import LVLM
from avl_runtime.tasks import sample


def raters(image: list[int], embeddings: np.ndarray) -> list[int]:
    """Of rows from position 100 on, those of the image tokens named."""
    mask = np.isin(np.arange(len(embeddings)), image)
    return RatedPrune(2, 0.5).raters(np.arange(100, 100 + len(mask)), mask, embeddings).tolist()


@pytest.mark.parametrize("seed", range(8))
def test_raters_are_brute_force_in_float64(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avl_plugins.policies.sparsevlm.BLOCK", 4)
    rows = np.random.default_rng(seed).standard_normal((30, 6)).astype(np.float32)
    image = [2, 3, 4, 5, 6, 9, 10, 11, 12]  # two pictures with text between them
    text = range(13, 30)
    likeness = dict.fromkeys(text, 0.0)
    for token in image:
        given = {j: math.exp(math.fsum(rows[token].astype(float) * rows[j])) for j in text}
        for j, one in given.items():
            likeness[j] += one / math.fsum(given.values())
    mean = math.fsum(likeness.values()) / len(text)
    want = [100 + j for j in text if likeness[j] > mean]
    assert raters(image, rows) == want
    assert 0 < len(want) < len(text)


def test_raters_where_nothing_tells_rows_apart() -> None:
    same = np.ones((9, 4), np.float32)
    assert raters([1, 2, 3], same) == [104, 105, 106, 107, 108]
    assert raters([1, 2, 7], same) == [108]
    assert raters([1, 2, 8], same) == [108]  # it ends with a picture
    assert raters([], same) == list(range(100, 109))
    large = np.full((9, 4), 300, np.float16)  # products that neither fp16 nor exp() holds
    assert raters([1, 2, 3], large) == [104, 105, 106, 107, 108]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sparsevlm:layers=3,keep=0.5/0.2", "for each a share, which fall, found layers=3 and"),
        ("sparsevlm:layers=3/7,keep=0.2/0.5", "which fall, found layers=3/7 and keep=0.2/0.5"),
        ("sparsevlm:layers=7/3,keep=0.5/0.2", "layers that rise"),
        ("sparsevlm:layers=0,keep=0.5", "layers to be a whole number of at least 1"),
        ("sparsevlm:layers=3,keep=0", "keep above 0 and at most 1"),
        ("sparsevlm:layers=3-7", "layers as numbers with a slash between them, found '3-7'"),
        ("sparsevlm:keep=0.5/half/0.1", "keep as numbers with a slash between them"),
        ("sparsevlm:keep=1e-3", "keep as numbers with a slash"),
        ("sparsevlm+avl:text=0.5", "evicts no text beside RatedPrune"),
        ("sparsevlm:layers=2,keep=0.5+fastv", "both to say which image tokens go on after"),
        ("sparsevlm+avl", "to leave at least the 0.5 of the image tokens"),
    ],
)
def test_refusals(text: str, why: str) -> None:
    with pytest.raises(PolicyError, match=why):
        parse(text)


def test_options_are_values() -> None:
    assert parse(str(parse("sparsevlm:layers=2/4,keep=0.5/.25"))) == SparseVLM("2/4", "0.5/.25")
    with pytest.raises(PolicyError, match="layers as numbers with a slash between them, found 3"):
        SparseVLM(layers=3)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"after layers 3, 7, 16, found splits after 2; export"):
        parse("sparsevlm").check([2], 17)
    with pytest.raises(PolicyError, match=r"a layer from 1 to 6 of this decoder's 7, found 7, 16;"):
        parse("sparsevlm").check([2, 3], 7)
    with pytest.raises(PolicyError, match=r"a decoder of two layers at least, .*found one;"):
        parse("sparsevlm").check([], 1)


def test_shares_are_the_counts_of_the_authors_code() -> None:
    """Of LLaVA 1.5's 576 tokens, for 192, 128 and 64 of them on average."""
    for keep, counts in {
        "0.5208/0.3472/0.191": [300, 200, 110],
        SparseVLM().keep: [303, 110, 36],
        "0.1146/0.0521/0.0295": [66, 30, 17],
    }.items():
        assert [stage.count(576) for stage in SparseVLM(keep=keep).actions()] == counts


@dataclass(frozen=True, slots=True)
class Told(RatedPrune):
    """Raters as it is told."""

    says: Callable[[Indices], Any] | None = None

    def raters(self, positions: Indices, image: Mask, embeddings: Scores) -> Any:
        return positions[-1:] if self.says is None else self.says(positions)


@dataclass(frozen=True)
class Own(Policy):
    says: Any = None
    name: ClassVar[str] = "own"

    def actions(self) -> tuple[Action, ...]:
        return (Told(2, 0.3, says=self.says),)


ONE = sample("ocr", "held-out", 7)


@pytest.mark.parametrize(
    "says",
    [
        lambda positions: positions[:0],
        lambda positions: positions[::-1],
        lambda positions: positions + 1,
        lambda positions: positions[-1:].tolist(),
        lambda positions: positions[-1:].astype(float),
    ],
)
def test_raters_that_are_none_of_the_rows(tiny: LVLM, says: Callable[[Indices], Any]) -> None:
    with pytest.raises(PolicyError, match=r"Told: expected some of a prompt's \d+ positions from"):
        tiny.generate(ONE.prompt, [ONE.image], policy=Own(says), max_new_tokens=1)


def test_the_last_row_as_the_only_rater_is_fastv(tiny: LVLM) -> None:
    asked = {"images": [ONE.image], "max_new_tokens": 3, "return_logits": True}
    for policy in (Own(), Own(lambda positions: positions[[4, -1]])):
        got = tiny.generate(ONE.prompt, policy=policy, **asked)
        same = tiny.generate(ONE.prompt, policy="fastv:layer=2,keep=0.3", **asked)
        assert np.array_equal(got.logits, same.logits) == (policy == Own())

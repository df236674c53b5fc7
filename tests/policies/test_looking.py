"""Methods that choose by attention in the vision encoder: brute force in float64, properties."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from avl_plugins.errors import PolicyError
from avl_plugins.policies import Picture, parse
from avl_plugins.policies.embedded import vispruner
from oracle.looking import LOOKING, Look, visionzip
from oracle.selecting import Draws
from policies.test_embedded import action_of, chosen, picture, view_of

CLEAR = 1e-6


def looked(shape: tuple[int, int], seed: int = 0, spread: float = 1.0) -> Picture:
    """A picture whose tokens receive attention as they do: much of it lies on few."""
    shown, rng = picture(shape, seed=seed), np.random.default_rng(seed + 100)
    drawn = np.exp(spread * rng.standard_normal((shown.places.shape[1], 3)))
    return replace(shown, attention=(drawn / drawn.sum(0)).astype(np.float32))


def look_of(shown: Picture, shape: tuple[int, int]) -> Look:
    columns = shown.attention.astype(np.float64).T
    return (shown.features.astype(np.float64), columns[0], columns[1], columns[2], shape)


def spec_of(name: str, count: int) -> str:
    return f"{name}{',' if ':' in name else ':'}tokens={count}"


@pytest.mark.parametrize("name", LOOKING)
def test_methods_are_brute_force_in_float64(name: str) -> None:
    clear = 0
    for seed in range(5):
        shape = (5 + seed % 3, 7)
        shown = looked(shape, seed, 1.5)
        for count in (1, 2, 9, 17, shown.places.shape[1] - 1):
            draws = Draws()
            want = LOOKING[name](look_of(shown, shape), count, draws)
            if draws.gap > CLEAR:
                clear += 1
                assert chosen(spec_of(name, count), shown) == sorted(want), (seed, count)
    assert clear > 12


@pytest.mark.parametrize("known", [1, 5, 48])
def test_vispruner_looks_likest_tokens_up(known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many neighbours are known, choices are those of comparing all with all."""
    monkeypatch.setattr(vispruner, "FEW", 8)
    monkeypatch.setattr(vispruner, "NEAREST", known)
    monkeypatch.setattr(vispruner, "ROWS", 10)
    for seed in range(4):
        shown = looked((9, 8), seed, 1.5)
        want = LOOKING["vispruner"](look_of(shown, (9, 8)), 14, Draws())
        assert chosen("vispruner:tokens=14", shown) == sorted(want)


@pytest.mark.parametrize("name", LOOKING)
def test_equal_tokens_are_taken_from_the_lowest_on(name: str) -> None:
    """Where nothing tells tokens apart, the first of those that may go stay."""
    shown = looked((6, 8))
    same = replace(
        shown,
        features=np.ones_like(shown.features),
        attention=np.full_like(shown.attention, 1 / 48),
    )
    found = chosen(spec_of(name, 20), same)
    assert len(found) == 20
    if not name.startswith("holov"):  # which takes from each part
        assert found[:10] == list(range(10))
    none = replace(same, attention=np.zeros_like(shown.attention))
    assert len(chosen(spec_of(name, 20), none)) == 20


@pytest.mark.parametrize("contextual", [0, 0.15625, 1])
def test_visionzip_merges_what_is_left_into_contextual_tokens(contextual: float) -> None:
    shown = looked((6, 6), 3)
    action = action_of(f"visionzip:tokens=13,contextual={contextual}")
    fates, groups = action.merged(view_of(shown))
    if not contextual:
        assert groups is None
        return
    assert groups is not None
    if contextual == 0.15625:
        _, joined = visionzip(look_of(shown, (6, 6)), 13, Draws())
        for target, others in joined.items():
            assert np.flatnonzero(groups == target).tolist() == sorted([target, *others])
    plain = action_of(f"visionzip:tokens=13,contextual={contextual},merge=False")
    others, none = plain.merged(view_of(shown))
    assert others.tolist() == fates.tolist() and none is None


def test_hiprune_keeps_the_neighbours_of_an_anchor_and_wraps_over_no_edge() -> None:
    shown = looked((7, 8))
    attention = np.full((56, 3), 0.001, np.float32)
    attention[23, 2] = 1  # at the right edge of the third row
    attention[40:, 1] = 0.5
    found = chosen("hiprune:tokens=20,anchors=0.25", replace(shown, attention=attention))
    assert set(found) == {15, 22, 23, 31, *range(40, 56)}


def test_holov_keeps_no_more_of_a_part_than_there_is() -> None:
    """The released code pads a part that is too small for its quota with zeros."""
    shown = looked((8, 8))
    attention = np.full((64, 3), 1e-6, np.float32)
    attention[:4] = 1
    found = chosen("holov:tokens=12", replace(shown, attention=attention))
    assert len(found) == 12 and found[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("visionzip:contextual=2", "contextual from 0 to 1"),
        ("vispruner:important=-1", "important from 0 to 1"),
        ("hiprune:anchors=1.5", "anchors from 0 to 1"),
        ("scope:alpha=2", "alpha from 0 to 1"),
        ("holov:parts=0", "whole number of at least 1"),
        ("visionzip+divprune", "expected each decision once"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        parse(spec)

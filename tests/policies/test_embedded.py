"""Methods that choose tokens before the decoder: brute force in float64, and properties."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avl_plugins.errors import PolicyError
from avl_plugins.policies import (
    ACTIVE,
    Action,
    Picker,
    Picture,
    Select,
    View,
    When,
    parse,
)
from avl_plugins.policies.embedded.similar import FINE, cosines
from oracle.selecting import METHODS, Draws, coverage, evs, kernel

CLEAR = 1e-5
NEARLY = 3e-9  # of tokens that are nearly alike


def picture(
    shape: tuple[int, ...], question: int = 5, seed: int = 0, width: int = 64, moving: bool = False
) -> Picture:
    """Random features that are like their neighbours', as those of pictures are."""
    rng = np.random.default_rng(seed)
    places = np.indices(shape if len(shape) == 3 else (1, *shape)).reshape(3, -1)
    waves = rng.standard_normal((3, width))
    features = np.sin(places.T @ waves) + 0.3 * rng.standard_normal((places.shape[1], width))
    asked = rng.standard_normal((question, width))
    return Picture(features.astype(np.float32), asked.astype(np.float32), places, 0, moving)


def view_of(shown: Picture) -> View:
    count = shown.places.shape[1]
    return View(np.arange(count), np.zeros(count, np.float32), 0, None, count, shown)


def action_of(spec: str) -> Action:
    (action,) = parse(spec).actions()
    return action


def chosen(spec: str, shown: Picture) -> list[int]:
    return np.flatnonzero(action_of(spec).choose(view_of(shown)) == ACTIVE).tolist()


def plain(shown: Picture) -> tuple[np.ndarray, np.ndarray]:
    return shown.features.astype(np.float64), shown.question.astype(np.float64)


@pytest.mark.parametrize("asked", [0, 1, 7])
@pytest.mark.parametrize("name", METHODS)
def test_methods_are_brute_force_in_float64(name: str, asked: int) -> None:
    clear = 0
    for seed in range(8):
        shown = picture((5 + seed % 4, 7), asked, seed)
        for count in (1, 2, 9, 17, shown.places.shape[1] - 1):
            draws = Draws()
            want = METHODS[name](*plain(shown), count, draws)
            if draws.gap > CLEAR:
                clear += 1
                assert chosen(f"{name}:tokens={count}", shown) == sorted(want)
    assert clear > 20


def test_many_tokens_are_compared_in_float32() -> None:
    assert cosines("mmtok", np.eye(FINE, dtype=np.float32)).dtype == np.float64
    assert cosines("mmtok", np.eye(FINE + 1, dtype=np.float32)).dtype == np.float32


@pytest.mark.parametrize("name", METHODS)
def test_tokens_that_are_nearly_alike_are_told_apart(name: str) -> None:
    """Those of a plain background: what another backend makes of features changes no choice."""
    noise, clear = np.random.default_rng(0), 0
    for seed in range(8):
        shown = picture((6, 7), seed=seed)
        alike = shown.features * np.float32(0.005) + np.float32(1)
        ours = Picture(alike, shown.question, shown.places, 0, False)
        off = noise.standard_normal(alike.shape).astype(np.float32) * np.float32(2**-23)
        theirs = Picture(alike + off, shown.question, shown.places, 0, False)
        draws = Draws()
        want = METHODS[name](*plain(ours), 17, draws)
        if draws.gap > NEARLY:
            clear += 1
            spec = f"{name}:tokens=17"
            assert chosen(spec, ours) == chosen(spec, theirs) == sorted(want)
    assert clear > 4


def test_evs_is_brute_force_in_float64() -> None:
    for seed, frames in enumerate((2, 3, 6)):
        shown = picture((frames, 3, 4), seed=seed, moving=True)
        for count in (1, 12, 15, 12 * frames - 1):
            draws = Draws()
            want = evs(plain(shown)[0].reshape(frames, 12, -1), count, draws)
            assert draws.gap > CLEAR
            assert chosen(f"evs:tokens={count}", shown) == sorted(want)


def test_evs_leaves_pictures_and_keeps_a_frame() -> None:
    still = picture((4, 5))
    assert chosen("evs:tokens=1", still) == list(range(20))
    assert chosen("evs:tokens=1", picture((3, 4, 5), moving=True)) == list(range(20))


def test_divprune_is_within_half_of_the_best_spread() -> None:
    """Greedy is within a factor of two for distances that are a metric: chords of unit rows."""
    for seed in range(6):
        shown = picture((3, 4), seed=seed)
        unit = plain(shown)[0]
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        chords = np.sqrt(np.maximum(0, 2 - 2 * unit @ unit.T))

        def spread(some: tuple[int, ...], chords: np.ndarray = chords) -> float:
            return min(chords[i, j] for i, j in combinations(some, 2))

        best = max(spread(some) for some in combinations(range(12), 4))
        assert spread(tuple(chosen("divprune:tokens=4", shown))) >= best / 2


def test_mmtok_is_within_1_minus_1_over_e_of_the_best_coverage() -> None:
    for seed in range(6):
        shown = picture((3, 4), seed=seed)
        covers = coverage(*plain(shown))
        best = max(covers[:, some].max(1).sum() for some in combinations(range(12), 4))
        found = covers[:, chosen("mmtok:tokens=4", shown)].max(1).sum()
        assert found >= (1 - 1 / math.e) * best


def test_cdpruner_takes_in_each_step_what_the_determinant_says() -> None:
    shown = picture((4, 4), seed=3)
    table = kernel(*plain(shown))
    first = chosen("cdpruner:tokens=1", shown)
    pairs = [np.linalg.det(table[np.ix_([*first, i], [*first, i])]) for i in range(16)]
    assert sorted([*first, int(np.argmax(pairs))]) == chosen("cdpruner:tokens=2", shown)


@pytest.mark.parametrize("name", [*METHODS, "uniform", "pool"])
def test_equal_tokens_are_taken_from_the_lowest_on(name: str) -> None:
    """Features that are all the same decide nothing, and more tokens than a rank has are there."""
    same = picture((4, 6))
    same = Picture(np.ones_like(same.features), same.question, same.places, 0, False)
    found = chosen(f"{name}:tokens=5", same)
    assert len(found) == 5
    if name in METHODS:
        assert found == list(range(5))
    few = picture((4, 6), width=3)
    assert len(chosen(f"{name}:tokens=20", few)) == 20


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.data())
def test_areas_share_a_picture_evenly(
    rows: int, columns: int, frames: int, data: st.DataObject
) -> None:
    shown = picture((frames, rows, columns), width=2)
    total = frames * rows * columns
    count = data.draw(st.integers(1, total))
    kept = chosen(f"uniform:tokens={count}", shown)
    assert len(kept) == count == len(set(kept))
    of_frame = np.bincount(shown.places[0][kept], minlength=frames)
    assert of_frame.max() - of_frame.min() <= 1


def test_pool_is_adaptive_mean_pooling() -> None:
    """For whole numbers of cells: torch's own, and rows of what is left are in their order."""
    shown = picture((12, 8), width=5)
    action = action_of("pool:tokens=24")
    fates, groups = action.merged(view_of(shown))
    kept = np.flatnonzero(fates == ACTIVE)
    assert groups is not None
    means = np.stack([shown.features[groups == token].mean(0) for token in kept])
    grid = torch.from_numpy(shown.features).reshape(12, 8, 5).permute(2, 0, 1)
    want = torch.nn.functional.adaptive_avg_pool2d(grid, (6, 4)).permute(1, 2, 0).reshape(24, 5)
    np.testing.assert_allclose(means, want.numpy(), atol=1e-6)
    assert kept.tolist() == chosen("uniform:tokens=24", shown)
    assert [token % 2 for token in kept] == [0] * 24


@pytest.mark.parametrize("side", [12, 8, 6])
def test_pool_of_a_video_is_pllavas(side: int) -> None:
    """16 frames of 24 x 24: its own 16 x 12 x 12, and other sizes, as torch pools in 3-D."""
    shown = picture((16, 24, 24), width=3, moving=True)
    action = action_of(f"pool:tokens={16 * side * side}")
    fates, groups = action.merged(view_of(shown))
    kept = np.flatnonzero(fates == ACTIVE)
    assert groups is not None
    sums = np.zeros((len(groups), 3))
    np.add.at(sums, groups, shown.features)
    means = sums[kept] / np.bincount(groups, minlength=len(groups))[kept, None]
    grid = torch.from_numpy(shown.features).double().reshape(16, 24, 24, 3).permute(3, 0, 1, 2)
    want = torch.nn.functional.adaptive_avg_pool3d(grid, (16, side, side))
    np.testing.assert_allclose(means, want.permute(1, 2, 3, 0).reshape(-1, 3), atol=1e-6)


def test_line_breaks_stay_and_count() -> None:
    shown = picture((4, 5))
    places = shown.places.copy()
    places[:, 4::5] = -1  # the end of each line
    shown = Picture(shown.features, shown.question, places, 0, False)
    for spec in ("divprune:tokens=9", "pool:tokens=9", "uniform:keep=0.45", "mmtok:tokens=9"):
        found = chosen(spec, shown)
        assert {4, 9, 14, 19} < set(found) and len(found) == 9
        assert action_of(spec).given(places, False) == 9
    assert len(chosen("dart:tokens=1", shown)) == 5  # a token beside the breaks


def test_random_is_by_seed_and_by_picture() -> None:
    shown = picture((5, 5))
    other = Picture(shown.features, shown.question, shown.places, 1, False)
    spec = "random:of=embedded,tokens=9,seed=4"
    assert chosen(spec, shown) == chosen(spec, shown)
    assert chosen(spec, shown) != chosen(spec, other)
    assert chosen(spec, shown) != chosen("random:of=embedded,tokens=9", shown)
    assert len(chosen("random:of=embedded,keep=0.2", shown)) == 5


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("divprune:keep=0.1,tokens=3", "expected keep or tokens"),
        ("mmtok:keep=0", "expected keep above 0"),
        ("uniform:tokens=0", "whole number of at least 1"),
        ("dart:pivots=0", "pivots"),
        ("cdpruner:weight=2", "weight from 0 to 1"),
        ("mmtok:alpha=0", "alpha above 0"),
        ("divprune+mmtok", "expected each decision once"),
        ("pool+random:of=embedded", "expected each decision once"),
        ("random:tokens=4", "expected tokens with of=embedded"),
        ("random:of=embedded,tokens=4,keep=0.2", "without keep"),
        ("random:of=divprune", "fastv, avl, embedded or cached"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        parse(spec)


@pytest.mark.parametrize(
    "spec", ["mmtok:tokens=3,alpha=0.25", "evs:keep=0.1", "random:of=embedded"]
)
def test_policies_are_their_text(spec: str) -> None:
    assert parse(str(parse(spec))) == parse(spec)


def test_chains_stand_in_the_order_of_time() -> None:
    for spec in ("divprune:tokens=64+avl:core=0.3", "fastv:keep=0.5+mmtok"):
        policy = parse(spec)
        policy.check((2,))
        first = policy.actions()[0]
        assert isinstance(first, Select) and first.when == {When.EMBEDDED}


@pytest.mark.parametrize(
    "wrong", [[0, 0, 1], [0, 1], [0, 1, 99], [-1, 0, 1], [[0, 1, 2]], [0.0, 1.0, 2.0]]
)
def test_pickers_that_pick_what_is_not_there_are_told(wrong: list[int]) -> None:
    class Wrong(Picker):
        def pick(self, picture: Picture, count: int) -> np.ndarray:
            return np.array(wrong)

    with pytest.raises(PolicyError, match=r"Wrong: expected the numbers of 3 of 12 tokens"):
        Select(Wrong(), most=3).choose(view_of(picture((3, 4))))


def test_pictures_of_too_many_tokens_are_refused_before_memory_is_taken() -> None:
    rows = np.broadcast_to(np.ones((1, 2), np.float32), ((1 << 14) + 1, 2))
    places = np.zeros((3, len(rows)), np.int64)
    shown = Picture(rows, rows[:1], places, 0, False)
    with pytest.raises(PolicyError, match="at most 16384 tokens"):
        action_of("divprune").choose(view_of(shown))

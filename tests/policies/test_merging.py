"""RESTORE's merging of what is not chosen: brute force in float64, and what must hold of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avl_plugins.errors import PolicyError
from avl_plugins.policies import ACTIVE, Picture, Select, Selecting, parse
from avl_plugins.policies.embedded import merging
from avl_runtime.generate.given import _medians
from oracle.merging import anchors
from oracle.selecting import METHODS, Draws
from policies.test_embedded import action_of, picture, plain, view_of

CLEAR = 1e-7


def merged(spec: str, shown: Picture) -> tuple[list[int], np.ndarray | None]:
    fates, groups = action_of(spec).merged(view_of(shown))
    return np.flatnonzero(fates == ACTIVE).tolist(), groups


@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", ["divprune", "cdpruner"])
def test_anchors_are_brute_force_in_float64(
    name: str, gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "ROWS", 5)
    clear = 0
    for seed in range(6):
        shown = picture((4 + seed % 3, 6), seed=seed)
        for count in (3, 9, shown.places.shape[1] - 1):
            draws, own = Draws(), max(1, round(gamma * count))
            some = METHODS[name](*plain(shown), own, draws)
            want = anchors(plain(shown)[0], some, count - own, draws)
            kept, groups = merged(f"{name}:tokens={count},gamma={gamma}", shown)
            if draws.gap < CLEAR:
                continue
            clear += 1
            assert kept == sorted([*some, *want]) and groups is not None
            for token in kept:
                joining = [token, *want.get(token, [])]
                assert np.flatnonzero(groups == token).tolist() == sorted(joining)
    assert clear > 12


def test_where_nothing_is_left_or_room_for_one_alone_nothing_is_merged() -> None:
    shown = picture((4, 5))
    assert merged("divprune:tokens=1,gamma=0.5", shown) == merged("divprune:tokens=1", shown)
    for spec in ("divprune:tokens=20,gamma=0.5", "divprune:keep=1,gamma=0.5", "evs:gamma=0.5"):
        assert merged(spec, shown) == (list(range(20)), None)  # evs leaves pictures
    kept, groups = merged("divprune:tokens=19,gamma=0.5", shown)
    assert groups is not None and len(kept) == len(set(groups.tolist())) == 19


def test_of_tokens_that_are_all_alike_the_first_are_anchors() -> None:
    shown = picture((4, 6))
    same = replace(shown, features=np.ones_like(shown.features))
    kept, groups = merged("divprune:tokens=6,gamma=0.5", same)
    assert kept == [0, 1, 2, 3, 4, 5] and groups is not None
    assert groups.tolist() == [*range(6), *[3] * 18]
    none = replace(shown, features=np.zeros_like(shown.features))
    assert len(merged("divprune:tokens=6,gamma=0.5", none)[0]) == 6


def test_line_breaks_join_nothing_and_a_first_frame_stays_as_it_is() -> None:
    shown = picture((4, 5))
    places = shown.places.copy()
    places[:, 4::5] = -1  # the end of each line
    kept, groups = merged("divprune:tokens=10,gamma=0.5", replace(shown, places=places))
    assert len(kept) == 10 and groups is not None
    breaks = [4, 9, 14, 19]
    assert groups[breaks].tolist() == breaks and set(groups.tolist()) == set(kept)
    assert np.isin(groups, breaks).sum() == 4
    kept, groups = merged("evs:keep=0.5,gamma=0.2", picture((4, 3, 4), moving=True))
    assert kept[:12] == list(range(12)) and len(kept) == 24 and groups is not None
    assert groups[:12].tolist() == kept[:12] and (np.bincount(groups)[:12] == 1).all()


@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 9)), max_size=30))
def test_rows_stand_at_the_lower_median(pairs: list[tuple[int, int]]) -> None:
    pairs += [(group, 5) for group in range(5)]
    into, positions = np.array(pairs).T
    members = [sorted(at for group, at in pairs if group == one) for one in range(5)]
    want = [each[(len(each) - 1) // 2] for each in members]
    assert _medians(positions, into).tolist() == want


def test_rows_move_unless_positions_close_up() -> None:
    assert not action_of("divprune").at_medians
    assert action_of("divprune:gamma=0.5,positions=restore").at_medians
    assert action_of("divprune:gamma=0.5").at_medians
    assert not action_of("divprune:gamma=0.5,positions=renumber").at_medians


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("divprune:gamma=0", "expected gamma above 0 and at most 1"),
        ("mmtok:gamma=1.5", "expected gamma above 0 and at most 1"),
        ("pool:gamma=0.5", "pool: expected gamma=1, as it averages .* leave gamma out"),
        ("visionzip:gamma=0.5", "visionzip: expected gamma=1, as it averages"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        parse(spec)


def test_what_averages_nothing_by_itself_takes_it() -> None:
    text = "visionzip:gamma=0.5,merge=False"
    assert parse(str(parse(text))) == parse(text)
    pool = parse("pool")
    assert isinstance(pool, Selecting)
    with pytest.raises(PolicyError, match="Select: expected gamma=1"):
        Select(pool, gamma=0.5)

"""Rows kept of a prompt, text and image alike: budgets, refusals, and one of somebody else's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avl_plugins.errors import PolicyError
from avl_plugins.policies import (
    ACTIVE,
    Action,
    Keeper,
    Policy,
    PyramidKV,
    Retain,
    Tokens,
    View,
    When,
    parse,
)
from avl_plugins.policies.cached.retain import last_rows
from avl_plugins.policies.cached.vlcache import apportion
from avl_plugins.policies.view import Fates, Indices, Mask
from avl_runtime import LVLM
from avl_runtime.evaluate.cost import Request, request_flops
from avl_runtime.tasks import sample

ONE = sample("ocr", "held-out", 7)


def test_pyramidkv_has_the_budgets_of_the_authors_code() -> None:
    budgets = PyramidKV(tokens=128, window=8).counts([2000] * 32, 2000)
    assert budgets == [242 - 7 * layer for layer in range(32)]  # 234, 227, ... 17 and the window
    # As many as there are in front, where the prompt is hardly longer than twice the budget.
    assert PyramidKV(tokens=128, window=8).counts([241] * 4, 241)[0] == 241
    assert PyramidKV(tokens=128, window=8).counts([239] * 4, 239) == [128] * 4
    assert PyramidKV(tokens=128, window=8).counts([100] * 4, 100) == [100] * 4
    assert PyramidKV(tokens=5, window=8).counts([100, 100], 100) == [8, 8]
    # A prompt that is shorter than the window.
    assert PyramidKV(keep=0.25, window=64).counts([40] * 4, 40) == [40] * 4


@given(st.lists(st.tuples(st.floats(1e-3, 1), st.integers(1, 400)), min_size=1, max_size=8))
def test_shares_of_layers_are_all_that_is_wanted(layers: list[tuple[float, int]]) -> None:
    densities, rows = [one for one, _ in layers], [held for _, held in layers]
    least = [-(-held // 100) for held in rows]
    for wanted in {sum(least), (sum(least) + sum(rows)) // 2, sum(rows)}:
        found = apportion(densities, rows, wanted)
        assert sum(found) == wanted
        assert all(low <= one <= held for low, one, held in zip(least, found, rows, strict=True))
    order = sorted(range(len(rows)), key=lambda n: densities[n] * rows[n])
    free = [n for n in order if least[n] < found[n] < rows[n]]
    assert all(found[a] <= found[b] + 1 for a, b in pairwise(free))


def test_the_last_rows_are_those_behind_a_picture() -> None:
    positions = np.arange(10, 20)
    image = np.zeros(10, np.bool_)
    assert last_rows(positions, image, 3).tolist() == [17, 18, 19]
    image[[2, 7]] = True
    assert last_rows(positions, image, 3).tolist() == [18, 19]
    assert last_rows(positions, image).tolist() == [18, 19]
    image[9] = True
    assert last_rows(positions, image, 3).tolist() == [19]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("snapkv+avl", "to be all that decides about cached rows, found Divide too"),
        ("avl:text=0.5+vlcache", "to be all that decides about cached rows, found"),
        ("zipvl+akvq", "to be all that decides about cached rows, found"),
        ("zipvl+snapkv", "both to say which rows of a prompt stay"),
        ("snapkv:window=0", "window to be a whole number of at least 1, found 0"),
        ("snapkv:pool=0", "pool to be a whole number of at least 1"),
        ("pyramidkv:beta=0", "beta to be a whole number of at least 1"),
        ("vlcache:recent=1.5", "recent from 0 to 1, found 1.5"),
        ("zipvl:tau=0", "tau above 0 and at most 1"),
        ("snapkv:tokens=9,keep=0.3", "keep or tokens, found both"),
    ],
)
def test_refusals(text: str, why: str) -> None:
    with pytest.raises(PolicyError, match=why):
        parse(text)


def test_a_window_that_is_left_out_can_be_written() -> None:
    assert str(parse("snapkv:window=None")) == "snapkv:window=None"
    assert parse("snapkv:window=None") != parse("snapkv")


@dataclass(frozen=True)
class Told(Action):
    """About rows of all kinds, as it is told."""

    says: Any = None
    asks: Any = None

    when: ClassVar[frozenset[When]] = frozenset({When.PROMPT})
    tokens: ClassVar[Tokens] = Tokens.ANY
    ranking = Retain.ranking
    decides = Retain.decides

    def probes(self, positions: Indices, image: Mask) -> Indices:
        return positions[-1:] if self.asks is None else self.asks(positions)

    def choose(self, view: View) -> Fates:
        found = np.zeros(view.positions.shape, np.int8)
        return found if self.says is None else self.says(found)

    def rows_left(self, rows: Sequence[int], total: int) -> list[int]:
        return [one + 1 for one in rows]


@dataclass(frozen=True)
class Own(Policy):
    says: Any = None
    asks: Any = None
    name: ClassVar[str] = "own"

    def actions(self) -> tuple[Action, ...]:
        return (Told(self.says, self.asks),)


def test_a_head_that_keeps_more_than_another(tiny: LVLM) -> None:
    def uneven(found: Fates) -> Fates:
        found[0, 0, 0] = 2
        return found

    with pytest.raises(PolicyError, match="Told: expected the KV heads of a layer to keep as many"):
        tiny.generate(ONE.prompt, [ONE.image], policy=Own(uneven), max_new_tokens=2)


@pytest.mark.parametrize(
    "asks",
    [
        lambda rows: rows[-1:] + 1,
        lambda rows: rows[::-1],
        lambda rows: rows[-2:].astype(float),
        lambda rows: rows.tolist(),
    ],
)
def test_probes_that_are_no_rows(tiny: LVLM, asks: Any) -> None:
    with pytest.raises(PolicyError, match=r"Told: expected some of a prompt's \d+ positions"):
        tiny.generate(ONE.prompt, [ONE.image], policy=Own(asks=asks), max_new_tokens=2)


@pytest.mark.parametrize("name", ["snapkv", "pyramidkv", "vlcache", "zipvl", "random:of=cached"])
def test_a_layer_that_no_probe_has_reached(name: str) -> None:
    """FastV has dropped the last token, of a prompt that ends with a picture."""
    (action,) = parse(name).actions()
    positions, attention = np.arange(90)[None, None], np.zeros((1, 1, 90), np.float32)
    (found,) = action.choose_layers([View(positions, attention, 0, 0, 120)])
    assert found.shape == positions.shape
    assert (found == ACTIVE).any()


def test_what_is_no_keeper() -> None:
    with pytest.raises(PolicyError, match="Retain: expected a keeper, found 3"):
        Retain(3)  # type: ignore[arg-type]
    assert isinstance(parse("zipvl"), Keeper)


def test_arithmetic_counts_the_rows_that_stay(tiny: LVLM) -> None:
    dims, request = tiny.package.manifest.dims, Request(100, 64, 3, before=10)
    whole = [64] * dims.num_layers
    nothing = [0] * dims.num_layers
    dense = request_flops(dims, (), request, whole, nothing)
    half = request_flops(dims, parse("snapkv:tokens=50").actions(), request, whole, nothing)
    assert half[0] == dense[0]
    pair = 2 * dims.num_heads * dims.head_dim * dims.num_layers
    assert [a - b for a, b in zip(dense[1], half[1], strict=True)] == [50 * pair] * 3
    told = request_flops(
        dims, parse("zipvl").actions(), request, whole, nothing, [50] * dims.num_layers
    )
    assert told == half
    with pytest.raises(PolicyError, match=r"Told: expected a whole number for each of"):
        request_flops(dims, Own().actions(), request, whole, nothing)


def test_bytes_and_placements_tell_what_stays(tiny: LVLM) -> None:
    got = tiny.generate(
        ONE.prompt, [ONE.image], policy="snapkv:tokens=40", max_new_tokens=2,
        return_placements=True,
    )  # fmt: skip
    assert set(got.placements[0].rows) == {40}
    assert got.stats.kv_bytes < got.stats.kv_bytes_dense / 3
    adaptive = tiny.generate(
        ONE.prompt, [ONE.image], policy="vlcache:tokens=40", max_new_tokens=2,
        return_placements=True,
    ).placements[0].rows  # fmt: skip
    assert sum(adaptive) == 40 * len(adaptive)
    assert len(set(adaptive)) > 1


def test_the_control_keeps_the_window_and_what_the_seed_draws(tiny: LVLM) -> None:
    def core(spec: str) -> np.ndarray:
        return (
            tiny.generate(
                ONE.prompt, [ONE.image], policy=spec, max_new_tokens=1, return_placements=True
            )
            .placements[0]
            .core
        )

    one, again = core("random:of=cached,keep=0.3"), core("random:of=cached,keep=0.3")
    np.testing.assert_array_equal(one, again)
    other = core("random:of=cached,keep=0.3,seed=1")
    assert (one != other).any()
    assert (one[0] != one[1]).any()
    # All heads of a layer keep the same, so that images and text fill the budget exactly.
    placed = tiny.generate(
        ONE.prompt, [ONE.image], policy="random:of=cached,keep=0.3", max_new_tokens=1,
        return_placements=True,
    )  # fmt: skip
    total = placed.stats.prompt_tokens
    assert set(placed.placements[0].rows) == {int(0.3 * total)}
    assert (one.sum(1) < 0.3 * total).all()

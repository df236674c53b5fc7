"""LOOK-M: rows that become sums of rows, as each kind of cache keeps them, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins import schema
from avl_plugins.errors import PolicyError
from avl_plugins.policies import ACTIVE, Action, LookM, Policy, View, parse
from avl_plugins.policies.view import Fates, Indices, Scores
from avl_runtime import LVLM
from avl_runtime.generate import probed
from avl_runtime.kv import moves
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.tasks import sample
from policies.test_retained import Told

ONE = sample("ocr", "held-out", 7)
KINDS = (schema.COMPUTED, schema.FP16, schema.INT8)


def filled(rng: np.random.Generator, kind: schema.RowType, heads: int, rows: int) -> SegmentCache:
    """Two sequences in two layers, rows of 8 numbers."""
    planes = [kind.planes(8, np.dtype(np.float32))] * 2
    cache = SegmentCache(2, heads, planes)
    for seq in range(2):
        new = [
            [rng.integers(-127, 128, (1, heads, rows, plane.width)).astype(plane.dtype)] * 2
            for plane in planes[0]
        ]
        for scales in new[2:]:
            scales[:] = [np.abs(one) / 127 + 1e-3 for one in scales]
        cache.extend(new, seq, np.arange(rows), None)
    return cache


def numbers(cache: SegmentCache, plane: int, layer: int, seq: int) -> np.ndarray:
    """[Hkv, n, D] float64."""
    rows = cache.active[plane][layer][seq].astype(np.float64)
    return rows * cache.active[plane + 2][layer][seq] if len(cache.active) > 2 else rows


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.integers(1, 3), st.integers(1, 9))
def test_rows_become_sums_of_rows(seed: int, kind: schema.RowType, heads: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    cache = filled(rng, kind, heads, rows)
    other = cache.fork()
    slots = np.argsort(rng.random((heads, rows)), 1)
    ends = np.sort(rng.permutation(rows)[: rng.integers(1, rows + 1)])
    into = rng.choice(np.append(ends, -1), (heads, rows))
    into[:, ends] = np.where(rng.random((heads, len(ends))) < 0.8, ends, -1)
    times = rng.uniform(-0.6, 1, (heads, rows))
    before = [[[numbers(cache, p, n, s) for s in range(2)] for n in range(2)] for p in range(2)]
    moves.merge(cache, 1, 1, slots, into, times)
    for plane in range(2):
        want = before[plane][1][1].copy()
        for head in range(heads):
            for end in set(into[head].tolist()) - {-1}:
                parts = [row for row in range(rows) if into[head, row] == end]
                whole = sum(
                    times[head, r] * before[plane][1][1][head, slots[head, r]] for r in parts
                )
                want[head, slots[head, end]] = whole
        got = numbers(cache, plane, 1, 1)
        size = np.abs(want)
        rounds = {"computed": 0 * size, "fp16": size / 2**11}
        step = rounds.get(kind.name, size.max(-1, keepdims=True) / 254)
        assert (np.abs(got - want) <= step + 1e-3)[:, :rows].all()
        untouched = np.ones((heads, rows), bool)
        for head in range(heads):
            untouched[head, slots[head, into[head][into[head] >= 0]]] = False
        np.testing.assert_array_equal(got[:, :rows][untouched], want[:, :rows][untouched])
        for layer, seq in ((0, 0), (0, 1), (1, 0)):
            np.testing.assert_array_equal(
                numbers(cache, plane, layer, seq), before[plane][layer][seq]
            )
        np.testing.assert_array_equal(numbers(other, plane, 1, 1), before[plane][1][1])


@pytest.mark.parametrize("kv", ["fp32", "fp16", "int8"])
def test_rows_of_every_kind_are_merged_as_they_are_kept(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, kv: str
) -> None:
    """By brute force in float64, from the rows that avl-tiny's cache holds before."""
    seen: list[float] = []

    def spied(cache: SegmentCache, seq: int, layer: int, slots: Any, *rest: Any) -> None:
        before = [numbers(cache, plane, layer, seq) for plane in range(2)]
        moves.merge(cache, seq, layer, slots, *rest)
        after = [numbers(cache, plane, layer, seq) for plane in range(2)]
        into = rest[0]
        for head, where in enumerate(slots):
            stays = [r for r in range(len(where)) if into[head, r] in (-1, r)]
            keys = before[0][head, where]
            lengths = np.sqrt((keys**2).sum(1))
            joins: dict[int, list[int]] = {}
            for row in set(range(len(where))) - set(stays):
                cosines = keys[stays] @ keys[row] / lengths[stays] / lengths[row]
                assert cosines.max() - cosines[stays.index(into[head, row])] < 1e-6
                joins.setdefault(int(into[head, row]), []).append(row)
            for plane in range(2):
                rows = before[plane][head, where]
                for row in stays:
                    halves = [(rows[one] + rows[row]) / 2 for one in joins.get(row, [])]
                    want = np.mean([rows[row], *halves], 0)
                    error = np.abs(after[plane][head, where[row]] - want).max()
                    seen.append(float(error / np.abs(want).max()))

    monkeypatch.setattr(probed, "merge", spied)
    model = LVLM.load(tiny_package, kv=kv, threads=1)
    got = model.generate(ONE.prompt, [ONE.image], policy="lookm:keep=0.3", max_new_tokens=3)
    assert max(seen) < {"fp32": 1e-6, "fp16": 2**-11}.get(kv, 0.5 / 127 + 1e-6)
    assert len(seen) > 1000
    assert got.stats.kv_bytes < 0.6 * got.stats.kv_bytes_dense


def test_text_stays_before_image_tokens() -> None:
    rng = np.random.default_rng(0)
    image = np.broadcast_to((np.arange(30) >= 4) & (np.arange(30) < 22), (1, 2, 30))
    attention = np.where(image, 9, 1) * rng.random((1, 2, 30)).astype(np.float32)
    positions = np.broadcast_to(np.arange(30), (1, 2, 30))
    (action,) = parse("lookm:tokens=14,recent=0.3").actions()
    (found,) = action.choose_layers([View(positions, attention, 0, 0, 30, image=image)])
    for head in range(2):
        kept = np.flatnonzero(found[0, head] == ACTIVE)
        best = 4 + np.argsort(-attention[0, head, 4:22])[:2]
        assert kept.tolist() == sorted([0, 1, 2, 3, *best, *range(22, 30)])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lookm:merge=mean", "merge = pivotal, averaged, weighted or none, found 'mean'"),
        ("lookm:recent=2", "recent from 0 to 1, found 2"),
        ("lookm+avl", "to be all that decides about cached rows, found Divide too"),
        ("lookm+snapkv", "both to say which rows of a prompt stay"),
    ],
)
def test_refusals(text: str, why: str) -> None:
    with pytest.raises(PolicyError, match=why):
        parse(text)


@dataclass(frozen=True)
class Merging(Told):
    """Drops all rows but the first two, and says where they go."""

    into: Any = None
    merges: ClassVar[bool] = True  # type: ignore[misc]

    def choose(self, view: View) -> Fates:
        return np.where(view.positions < 2, 0, 2).astype(np.int8)

    def merging(self, view: View, chosen: Fates) -> tuple[Indices, Scores]:
        assert view.keys.dtype == np.float32
        assert view.keys.shape[:2] == view.positions.shape[1:]
        found = np.zeros(chosen.shape, np.int64)
        return self.into(found, np.ones(chosen.shape))


@dataclass(frozen=True)
class Own(Policy):
    into: Any = None
    name: ClassVar[str] = "own"

    def actions(self) -> tuple[Action, ...]:
        return (Merging(into=self.into),)


def with_(found: Indices, row: int, end: int) -> Indices:
    found[..., 1] = -1
    found[..., row] = end
    return found


@pytest.mark.parametrize(
    ("into", "why"),
    [
        (lambda found, times: (found[0], times), "expected int64 .* from merging"),
        (lambda found, times: (found + 0.0, times), "expected int64 .* from merging"),
        (lambda found, times: (found, 1), "expected float .* from merging"),
        (lambda found, times: (with_(found, 4, 3), times), "each row to be merged into one that"),
        (lambda found, times: (with_(found, 4, -2), times), "each row to be merged into one that"),
        (lambda found, times: (with_(found, 4, 10**6), times), "each row to be merged into one"),
        (lambda found, times: (with_(found, 1, 0), times), "each row to be merged into one that"),
        (lambda found, times: (with_(found, 1, 1), times * np.nan), "finite number of times"),
    ],
)
def test_what_nobody_can_merge(tiny: LVLM, into: Any, why: str) -> None:
    with pytest.raises(PolicyError, match=f"Merging: .*{why}"):
        tiny.generate(ONE.prompt, [ONE.image], policy=Own(into), max_new_tokens=2)


def test_defaults_are_the_papers() -> None:
    assert LookM() == LookM(keep=None, window=None, recent=0.5, merge="pivotal")
    assert parse("lookm:merge=none").actions()[0].merges is False

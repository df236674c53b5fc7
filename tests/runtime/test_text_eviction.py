"""Text that the compiled library drops, against the kernels' definition of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from avl_plugins.cpu.host import Host, host
from avl_plugins.kernels.naive import eviction
from avl_plugins.policies.ranking import HeavyHitters
from avl_plugins.schema import COMPUTED
from avl_runtime.kv.append import Appender
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.kv.gather import gathered

LAYERS, HEADS, DIM = 3, 2, 4
MOST = 8  # rows that the library drops at once


class Case:
    """A batch of which one sequence holds image rows in front, then text in any order.

    All heads of a layer hold as many text rows, the `recent` newest tokens among them; layers hold
    unequal numbers.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        library: Host,
        batch: int,
        front: int,
        stay: int,
        heavy: float,
    ) -> None:
        self.stay, self.recent = stay, HeavyHitters(heavy).recent(stay)
        self.tokens = front + stay + 40
        self.seq = int(rng.integers(batch))
        rows = stay + MOST + 3  # at most, of text
        caches = []
        for _ in range(batch):
            one = SegmentCache(1, HEADS, [COMPUTED.planes(DIM, np.dtype(np.float32))] * LAYERS)
            drawn = rng.standard_normal((2, LAYERS, 1, HEADS, front + rows, DIM))
            one.extend(drawn.astype(np.float32), 0, np.arange(front + rows), None)
            caches.append((one, 0))
        self.cache = gathered(caches, 5)
        new = [np.ones((LAYERS, batch, HEADS, 1, DIM), np.float32) for _ in "kv"]
        self.appender = Appender(new, np.zeros(batch, np.int64), library)
        self.appender.append(self.cache, None, [False] * batch, 5, lambda: None)
        self.cache.mass[...] = rng.integers(0, 3, self.cache.mass.shape)  # many are equal
        self.cache.image_rows[...] = front
        self.counts = rng.integers(0, rows + 1, LAYERS)
        self.cache.active_len[:, self.seq] = front + self.counts
        for layer, head in np.ndindex(LAYERS, HEADS):
            count = int(self.counts[layer])
            newest = np.arange(self.tokens - self.recent, self.tokens)[: max(0, count)]
            older = rng.permutation(np.arange(front, self.tokens - self.recent))
            text = np.concatenate([newest, older[: count - len(newest)]])
            line = self.cache.positions[layer, self.seq, head]
            line[:front], line[front : front + count] = np.arange(front), rng.permutation(text)
        self.evictable = np.arange(self.tokens) >= front

    def evict(self) -> bool:
        arguments = (self.seq, self.evictable, self.stay, self.recent)
        return self.appender.evict(self.cache, *arguments)

    def planes(self) -> list[NDArray[np.generic]]:
        """[L, B, Hkv, A, ...] of each plane."""
        cache = self.cache
        stacked = [np.stack(cache.k_active), np.stack(cache.v_active)]
        return [*stacked, cache.positions.copy(), cache.mass.copy()]

    def expected(self, layer: int) -> tuple[list[NDArray[np.generic]], int]:
        """A layer's planes and length after the definition's moves."""
        planes = [plane[layer].copy() for plane in self.planes()]
        length = int(self.cache.active_len[layer, self.seq])
        for head in range(HEADS):
            positions = planes[2][self.seq, head, :length]
            moves = eviction(
                planes[3][self.seq, head, :length],
                positions,
                self.evictable[positions],
                self.stay,
                self.recent,
            )
            for plane in planes:
                for origin, to in moves:
                    plane[self.seq, head, to] = plane[self.seq, head, origin]
        return planes, length - max(0, int(self.counts[layer]) - self.stay)


def cases() -> dict[str, st.SearchStrategy[object]]:
    return {
        "batch": st.integers(1, 3),
        "front": st.integers(0, 3),
        "stay": st.integers(1, 20),
        "heavy": st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        "seed": st.integers(0, 2**32 - 1),
    }


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(**cases())
def check(library: Host, batch: int, front: int, stay: int, heavy: float, seed: int) -> None:
    case = Case(np.random.default_rng(seed), library, batch, front, stay, heavy)
    before, lengths = case.planes(), case.cache.active_len.copy()
    wanted = [case.expected(layer) for layer in range(LAYERS)]
    done = case.evict()
    assert done == bool((case.counts <= stay + MOST).all())
    after = case.planes()
    for layer, (planes, length) in enumerate(wanted):
        left = case.counts[layer] > stay + MOST
        assert case.cache.active_len[layer, case.seq] == (
            lengths[layer, case.seq] if left else length
        )
        for plane, old, new in zip(planes, before, after, strict=True):
            assert new[layer].tobytes() == (old[layer] if left else plane).tobytes()


def test_what_goes_is_what_the_definition_drops(kernels: Path) -> None:
    library = host()
    assert library is not None
    check(library)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(fault=st.sampled_from(["NaN", "unequal heads", "newest gone"]), **cases())
def check_left(
    library: Host, fault: str, batch: int, front: int, stay: int, heavy: float, seed: int
) -> None:
    case = Case(np.random.default_rng(seed), library, batch, front, stay, heavy)
    layer = int(np.argmax(case.counts))
    count = int(case.counts[layer])
    if not stay < count <= stay + MOST or (fault == "newest gone" and not case.recent):
        return
    line = case.cache.positions[layer, case.seq, HEADS - 1]
    text = slice(front, front + count)
    if fault == "NaN":
        old = front + int(np.argmin(line[text]))
        case.cache.mass[layer, case.seq, HEADS - 1, old] = np.nan
    elif fault == "unequal heads":
        line[front] = -1
    else:
        line[front + int(np.argmax(line[text]))] = np.setdiff1d(np.arange(front, 99), line[text])[0]
    before = [plane[layer].tobytes() for plane in case.planes()]
    assert not case.evict()
    assert [plane[layer].tobytes() for plane in case.planes()] == before
    assert case.cache.active_len[layer, case.seq] == front + count


def test_what_it_cannot_tell_it_leaves_as_it_was(kernels: Path) -> None:
    library = host()
    assert library is not None
    check_left(library)

"""Pages of large arrays: moved, never lost, and held no more than arrays took together."""

from __future__ import annotations

import gc
import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from avl_runtime.machine import pages as module
from avl_runtime.machine.memory import rss_bytes
from avl_runtime.machine.pages import GRANULE, LEAST, Pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="moves pages as Linux can")
MIB = 1 << 20


def used() -> Pages:
    pages = Pages()
    pages.use()
    return pages


def rounded(nbytes: int) -> int:
    return -(-nbytes // GRANULE) * GRANULE


@given(seed=st.integers(0, 1 << 30), kept=st.sampled_from([0, 0, 3 * GRANULE + 1, 40 * GRANULE]))
@settings(max_examples=40)
def test_arrays_have_their_numbers_and_no_more_is_held_than_they_took(seed: int, kept: int) -> None:
    draw, pages = random.Random(seed), used()
    pages.keep(kept)
    live: dict[int, NDArray[np.int64]] = {}
    most = now = 0
    for number in range(1, 40):
        if live and (draw.random() < 0.5 or now > 5 * LEAST):
            value = draw.choice(list(live))
            array = live.pop(value)
            assert (array == value).all()
            now -= rounded(array.nbytes)
            if draw.random() < 0.3:  # a view keeps the whole
                part = array[1:2]
                del array
                pages.empty((LEAST,), np.int8)[...] = 1
                assert (part == value).all()
                most = max(most, now + rounded(part.base.nbytes) + LEAST)
                del part
            else:
                del array
        else:
            shape = draw.randrange(8, 12), LEAST // 64 + draw.randrange(9999)
            array = pages.empty(shape, np.int64)
            array[...] = number
            live[number] = array
            now += rounded(array.nbytes)
            most = max(most, now)
            del array
        assert pages.held <= max(most, rounded(kept))
    assert all((array == value).all() for value, array in live.items())
    live.clear()
    pages.give_back()
    assert pages.held == rounded(kept) and not pages.surplus


def test_memory_is_taken_at_once_where_it_is_kept_and_else_given_back() -> None:
    pages, before = used(), rss_bytes()
    assert before is not None
    pages.keep(24 * MIB)
    assert rss_bytes() - before >= 22 * MIB
    arrays = [pages.empty((8 * MIB,), np.int8) for _ in range(4)]
    for array in arrays:
        array[...] = 1
    assert pages.held == 32 * MIB
    del arrays, array
    assert pages.surplus == 8 * MIB
    pages.give_back()
    assert pages.held == 24 * MIB
    pages.keep(0)
    pages.give_back()
    assert pages.held == 0 and rss_bytes() - before <= 4 * MIB


def test_pages_that_lie_apart_are_one_array_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case that an allocator answers with new memory."""
    moves, move = list[int](), module._move

    def counted(at: int, size: int, to: int) -> bool:
        moves.append(size)
        return move(at, size, to)

    monkeypatch.setattr(module, "_move", counted)
    pages = used()
    arrays = [pages.empty((2 * MIB,), np.int8) for _ in range(6)]
    for value, array in enumerate(arrays):
        array[...] = value
    del array, arrays[::2]
    gc.collect()
    whole = pages.empty((6 * MIB,), np.int8)
    assert pages.held == 12 * MIB and len(moves) == 3
    whole[...] = 9
    assert [int(array[-1]) for array in arrays] == [1, 3, 5]
    assert all((array == array[0]).all() for array in arrays)


def test_what_cannot_be_moved_stays_and_new_pages_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux refuses: what lay at the new place is gone by then."""
    pages = used()
    arrays = [pages.empty((MIB,), np.int8) for _ in range(3)]
    del arrays[::2]

    def refused(at: int, size: int, to: int) -> bool:
        return module._libc().munmap(to, size) != 0

    monkeypatch.setattr(module, "_move", refused)
    whole = pages.empty((2 * MIB,), np.int8)
    whole[...] = 1
    assert pages.held == 5 * MIB and (whole == 1).all()


def test_small_arrays_and_those_of_pages_that_are_not_used_are_numpys() -> None:
    assert Pages().empty((LEAST,), np.int8).flags.owndata
    pages = used()
    assert pages.empty((LEAST - 1,), np.int8).flags.owndata
    assert not pages.empty((LEAST,), np.int8).flags.owndata
    Pages().keep(1 << 60)  # nothing, as it is not used


def test_memory_that_the_system_does_not_give_is_told() -> None:
    pages = used()
    with pytest.raises(MemoryError, match="expected 1152921504606846976 bytes of memory, found"):
        pages.keep(1 << 60)
    assert pages.held == 0 and not pages.surplus
    pages.empty((LEAST,), np.int8)[...] = 1
    pages.give_back()
    assert pages.held == 0

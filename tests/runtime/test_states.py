"""States are kept, shared, gathered and replaced as wholes, and a shared one is never written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_runtime.kv.states import LayerStates, gathered_states


def drawn(seed: int, batch: int) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((batch, *shape)).astype(np.float32) for shape in ((3, 5), (2, 4))]


def equal(found: LayerStates, arrays: list[NDArray[Any]]) -> None:
    for one, other in zip(found.arrays, arrays, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_step_gives_back_what_nobody_else_has() -> None:
    first, second, third = drawn(0, 2), drawn(1, 2), drawn(2, 2)
    states = LayerStates(first)
    free = states.exchange(second)
    assert [id(array) for array in free] == [id(array) for array in first]
    fork, kept = states.copy(), [array.copy() for array in second]
    free = states.exchange(third)
    assert not any(np.shares_memory(*pair) for pair in zip(free, second, strict=True))
    equal(fork, kept)
    equal(states, third)


def test_one_sequence_of_a_batch_is_replaced() -> None:
    states, new = LayerStates(drawn(0, 3)), drawn(1, 1)
    before = states.copy()
    states.replace(1, new)
    equal(before, drawn(0, 3))
    equal(states.window(1), new)
    equal(states.taken(2), [array[2:] for array in drawn(0, 3)])
    assert states.nbytes == 4 * 3 * (15 + 8)


def test_sequences_of_several_caches_join() -> None:
    one, other = LayerStates(drawn(0, 1)), LayerStates(drawn(1, 2))
    joined = gathered_states([(other, 1), (one, 0)])
    for number, array in enumerate(joined.arrays):
        np.testing.assert_array_equal(array[0], other.arrays[number][1])
        np.testing.assert_array_equal(array[1], one.arrays[number][0])
    assert len(gathered_states([(LayerStates(), 0)])) == 0

"""Rows that prompts leave for later ones that begin alike, in so many bytes.

A prompt is read in runs. Rows of a run depend on what stands before them and on nothing behind, as
long as no action has moved one: so they are kept by run, each under a key that says all that was
read up to its end, and whoever goes on from them copies them. The runs of a prompt form a chain,
and prompts that begin alike share its first ones.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from avl_runtime.kv.cache import Array, Floats, Ints, SegmentCache


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """What a run of a prompt leaves; nobody writes its arrays.

    Attributes:
        rows: of each segment that is shared, planes [L, 1, Hkv, n, width].
        mass: of each such segment [L, Hkv, m], what text has given the m rows up to the run's last;
            empty where nobody counts it.
        hidden: [n, C], what the last such segment has put out; None where nobody reads it.
        states: of each such segment, what layers keep behind the run, as a state cannot be cut out
            of a later one; empty where no layer keeps any.
    """

    rows: tuple[tuple[Array, ...], ...]
    mass: tuple[Floats, ...]
    hidden: Array | None
    states: tuple[tuple[Array, ...], ...] = ()

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return int(self.rows[0][0].shape[3])

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        hidden = () if self.hidden is None else (self.hidden,)
        planes = [plane for segment in (*self.rows, *self.states) for plane in segment]
        return sum(array.nbytes for array in (*planes, *self.mass, *hidden))


class Disk(Protocol):
    """Keeps blocks outside of memory; see `disk.folder.PrefixFolder`."""

    def read(self, key: bytes, pattern: Block) -> Block | None: ...

    def leave(self, keys: Sequence[bytes], blocks: Sequence[Block]) -> None: ...

    def close(self) -> None: ...


class PrefixCache:
    """Blocks by key, the least recently used out first; threads may share it.

    A key is said by the caller to hold all that its block depends on, the keys before it included.

    Attributes:
        limit: bytes of all blocks together.
        disk: where blocks are kept beside that, for other processes and times.
    """

    def __init__(self, limit: int, disk: Disk | None = None) -> None:
        self.limit, self.disk = limit, disk
        # In the order of last use, a block always before the one that it goes on: what is dropped
        # first is then never needed by another.
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self._held = self._expected = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self._held

    def expect(self, nbytes: int) -> bool:
        """Make way for a block before its rows are made, if the limit allows; whether it does.

        Whoever was told so calls `unexpect`, before the block is added or where it is not.
        """
        with self._lock:
            if self._expected + nbytes > self.limit:
                return False
            self._expected += nbytes
            self._drop()
        return True

    def unexpect(self, nbytes: int) -> None:
        """Expect so many bytes less."""
        with self._lock:
            self._expected -= nbytes

    def find(self, keys: Sequence[bytes]) -> list[Block]:
        """The blocks of a chain's first keys, as many as there are."""
        found: list[Block] = []
        with self._lock:
            for key in keys:
                block = self._blocks.get(key)
                if block is None:
                    break
                found.append(block)
            self._use(keys[: len(found)])
        return found

    def add(self, keys: Sequence[bytes], blocks: Sequence[Block]) -> None:
        """Keep the blocks of a chain, from its first on, as far as the limit allows."""
        taken, count = 0, 0
        for block in blocks:
            taken += block.nbytes
            if taken > self.limit:
                break
            count += 1
        with self._lock:
            for key, block in zip(keys[:count], blocks, strict=False):
                if key not in self._blocks:
                    self._blocks[key] = block
                    self._held += block.nbytes
            self._use(keys[:count])
            self._drop()
        if self.disk is not None:
            self.disk.leave(keys, blocks)

    def stored(self, key: bytes, pattern: Block) -> Block | None:
        """The block of a key that lies on disk.

        Args:
            pattern: a block of its form, whose arrays hold anything.
        """
        return None if self.disk is None else self.disk.read(key, pattern)

    def clear(self) -> None:
        """Drop all blocks."""
        with self._lock:
            self._blocks.clear()
            self._held = 0

    def _drop(self) -> None:
        while self._blocks and self._held + self._expected > self.limit:
            _, gone = self._blocks.popitem(last=False)
            self._held -= gone.nbytes

    def _use(self, keys: Sequence[bytes]) -> None:
        for key in reversed(keys):
            self._blocks.move_to_end(key)


def put(blocks: Sequence[Block], index: int, cache: SegmentCache, positions: Ints) -> None:
    """Have an empty cache of one sequence hold the rows of blocks, in segment `index`.

    Args:
        positions: of at least as many rows in their conversation.
    """
    length = 0
    for block in blocks:
        cache.extend(block.rows[index], 0, positions[length : length + block.length], None)
        length += block.length
    if blocks[-1].mass:
        cache.mass[:, 0, :, :length] = blocks[-1].mass[index]
    if blocks[-1].states:
        cache.states.replace(0, blocks[-1].states[index])

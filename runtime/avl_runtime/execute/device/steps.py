"""One segment's part of a decode step on a device: what it reads, and the moves that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import ge
from typing import Any

import numpy as np

from avl_plugins.graph_io import ACTIVE, MADE, MOST_WEIGHTINGS, PARKED
from avl_plugins.kernels.catalog import ROWS
from avl_plugins.policies import Tokens
from avl_runtime.execute.device.backend import DeviceBackend
from avl_runtime.execute.device.books import DeviceBooks
from avl_runtime.execute.device.cache import DeviceCache
from avl_runtime.execute.device.selects import evictable_rows, length_groups, selects_on_device
from avl_runtime.execute.device.standing import CachedStanding
from avl_runtime.execute.device.tensors import (
    Nothing,
    Outputs,
    Tensor,
    Upload,
    Use,
    cache_inputs,
)
from avl_runtime.execute.device.update import launch_update
from avl_runtime.execute.protocol import Member
from avl_runtime.kv.cache import Ints
from avl_runtime.kv.standing import Standing, unlike

TEXT_MOVES = 4  # a step drops one row more than it adds at most; lists are kept to 32 bytes
_INT64 = np.dtype(np.int64)

Fields = Mapping[str, tuple[tuple[int, ...], Any]]


@dataclass(frozen=True, slots=True)
class Text:
    """What a text budget reads of the conversations: see `kernels.select`.

    Attributes:
        image_mask: [B, T] int8; first_image: [B] int32.
        tokens: T.
    """

    image_mask: int
    first_image: int
    tokens: int


class SegmentSteps:
    """A segment bound to its cache as it is; bound anew when the cache is full.

    Attributes:
        books: on the device, or None where the host keeps and selects.
    """

    def __init__(
        self,
        backend: DeviceBackend,
        index: int,
        cache: DeviceCache,
        members: Sequence[Member],
        text: Text | None,
    ) -> None:
        """
        Raises:
            OutOfDeviceMemoryError: there is no room.
        """
        self._backend, self._index, self.cache = backend, index, cache
        self._members, self._text = members, text
        graph = backend.manifest.graph_of(backend.manifest.segments[index])
        self._layers = graph.layers
        memory, batch = backend.memory, cache.batch
        cache.claim()
        cache.part()
        # Where a row stands the host says, which has to know of every move.
        biased = any(one.restores for each in members for one in each.actions)
        selects = not biased and selects_on_device(cache, members)
        self.books = DeviceBooks(cache) if selects else None
        cache.books = self.books
        self._nothing = Nothing(cache.place, batch)
        self._has_parked = bool(cache.parked_len.any())
        self._rooms, apart = cache.active_rooms, cache.parked_rooms
        self.outputs = Outputs(cache.place, graph, (batch, 1), self._rooms, apart)
        self._standing = None
        if graph.restores:
            differ = cache.place.heads if unlike(each.actions for each in members) else 1
            rooms = self._rooms, apart
            heads = differ if biased else 0
            self._standing = CachedStanding(cache.place, graph, batch, rooms, heads)
        self._sizes = (cache.layers, batch, cache.place.heads)
        self._rows = list(cache.rows)  # as they are bound
        self._evictable = evictable_rows(cache, members)
        core, parked = int(cache.image_rows.max()), int(cache.parked_len.max())
        self._core_moves = 2 * min(core, parked)
        self._core_rows = core + parked
        # Layers that hold as many rows share what says how many, as long as they hold as many.
        self._groups = length_groups(cache)
        self._firsts = [self._groups.index(group) for group in sorted(set(self._groups))]
        self._may_part = self.books is None or text is not None
        fields: dict[str, tuple[tuple[int, ...], Any]] = {
            "image_rows": ((cache.layers, batch), _INT64),
            "append_source": ((*self._sizes, 1), _INT64),
            **dict.fromkeys(("append", "core", "text"), ((cache.layers, 8), _INT64)),
        }
        self._fixed = Upload(memory, fields)
        item = int(np.prod(self._sizes)) * _INT64.itemsize
        # Lists that selections write: source and destination.
        self._core_lists = [memory.allocate("scratch", item * self._core_moves) for _ in "sd"]
        self._text_lists = [memory.allocate("scratch", item * TEXT_MOVES) for _ in "sd"]
        self._remaining = memory.allocate("scratch", cache.layers * batch * _INT64.itemsize)

    @property
    def outdated(self) -> bool:
        """Whether rows lie elsewhere than they were bound, or there is no room for the next."""
        cache = self.cache
        return (
            any(now is not bound for now, bound in zip(cache.rows, self._rows, strict=True))
            or cache.shared
            or cache.forked
            or any(map(ge, cache.tops, self._rooms))
            or cache.books is not self.books
            or (self._may_part and length_groups(cache) != self._groups)
        )

    def fields(self) -> Fields:
        """What the step's inputs hold for this segment."""
        batch, index = self.cache.batch, self._index
        found: dict[str, tuple[tuple[int, ...], Any]] = {
            f"append.{index}": ((*self._sizes, 1), _INT64)
        }
        for group in range(len(self._firsts)):
            for name in ("active_len", "grown_len", "parked_len"):
                found[f"{name}.{index}.{group}"] = ((batch,), _INT64)
        return found

    def bind(self, step: Upload, inputs: Mapping[str, Tensor]) -> None:
        """Say where inputs are; `outputs` stay where they are.

        Args:
            step: the step's own, with `fields` and `budget` [B, 2] int32.
            inputs: those that do not depend on the cache, by the segment's names.
        """
        cache, fixed = self.cache, self._fixed
        self._step = step
        lengths = {
            name: [step.address(f"{name}.{self._index}.{group}") for group in self._groups]
            for name in ("active_len", "grown_len", "parked_len")
        }
        self._tensors = {
            reads: {
                **inputs,
                **cache_inputs(
                    cache.place,
                    cache.rows,
                    cache.batch,
                    self._layers,
                    lengths["active_len"],
                    lengths["parked_len"] if reads else None,
                    self._nothing,
                ),
                **self.outputs.tensors(rows),
                **(self._standing.tensors(reads) if self._standing is not None else {}),
            }
            for reads, rows in (
                (False, [self._nothing.rows] * cache.layers),
                (True, cache.parked_rooms),
            )
        }
        fixed.host["image_rows"][...] = cache.image_rows
        new_rows = np.add(cache.active_rooms, cache.parked_rooms)
        fixed.host["append_source"][...] = new_rows[:, None, None, None]
        fixed.host["append"][...] = cache.table(self.outputs.k_new, self.outputs.v_new)
        books = self.books
        if books is not None:
            for layer in range(cache.layers):
                self._fill_tables(books, layer, lengths)
        fixed.queue()

    def _fill_tables(
        self, books: DeviceBooks, layer: int, lengths: Mapping[str, Sequence[int]]
    ) -> None:
        cache, fixed, outputs = self.cache, self._fixed, self.outputs
        rows = cache.rows[layer]
        fixed.host["text"][layer, :7] = (
            outputs.mass(ACTIVE.mass)[layer],
            outputs.mass(MADE.mass)[layer],
            books.positions(layer),
            books.mass(layer),
            lengths["grown_len"][layer],
            rows.active,
            rows.active,
        )
        fixed.host["core"][layer] = (
            outputs.mass(ACTIVE.mass)[layer],
            outputs.mass(PARKED.mass)[layer],
            books.positions(layer),
            books.parked_positions(layer),
            fixed.address("image_rows") + layer * cache.batch * _INT64.itemsize,
            lengths["parked_len"][layer],
            rows.active,
            rows.parked,
        )

    def reads_parked(self, refresh: bool) -> bool:
        """Whether a step reads parked rows: a refresh does, where there are any."""
        return refresh and self._has_parked

    def recordable(self, refresh: bool) -> bool:
        """Whether the segment's part of a step, which has run before, can be recorded."""
        use: Use = "refresh" if self.reads_parked(refresh) else "step"
        return self._backend.segments[self._index].recordable(use)

    def queue_run(self, refresh: bool) -> None:
        """Queue the segment."""
        reads = self.reads_parked(refresh)
        segment = self._backend.segments[self._index]
        if reads:
            self.cache.fetch()
        if self._standing is not None:
            self._standing.queue(reads)
        segment.run(self._tensors[reads], "refresh" if reads else "step")

    def queue_moves(self, refresh: bool) -> None:
        """Queue what follows: the exchange of a refresh, the new row, the eviction of text."""
        if self.books is not None and self.reads_parked(refresh) and self._core_moves:
            self._queue_exchange()
            self.cache.stow()
        appended = self._step.address(f"append.{self._index}")
        self._queue_update(self._fixed.address("append_source"), appended, 1)
        if self.books is not None and self._text is not None:
            self._queue_eviction(self._text)

    def note(
        self, step: Upload, positions: Ints, reads: Sequence[bool], standing: Standing | None
    ) -> None:
        """Put this segment's part of the next step's inputs on the host's side.

        Args:
            positions: [B], of the new tokens.
            reads: for each sequence, whether its parked rows are read.
            standing: of the conversations' tokens, where attention is biased.
        """
        cache, index = self.cache, self._index
        for group, layer in enumerate(self._firsts):
            lengths = {
                "active_len": cache.active_len[layer],
                "grown_len": cache.active_len[layer] + 1,
                "parked_len": np.where(reads, cache.parked_len[layer], 0),
            }
            for name, rows in lengths.items():
                step.host[f"{name}.{index}.{group}"][:] = rows
        step.host[f"append.{index}"][...] = cache.active_len[:, :, None, None]
        if self._standing is not None and standing is not None:
            self._standing.note(standing, cache, any(reads))
        if self.books is not None:
            for seq, position in enumerate(positions.tolist()):
                self.books.queue_row(seq, cache.active_len[:, seq].tolist(), position)

    def count_rows(self) -> None:
        """Count the rows that a step has added, and those of text that it has evicted."""
        cache = self.cache
        cache.active_len += 1
        for seq, member in enumerate(self._members):
            text = next((a for a in member.actions if a.tokens is Tokens.TEXT), None)
            if text is None:
                continue
            limit = text.limit(member.text_after_image)
            count = self._evictable[:, seq] + int(member.text_after_image > 0)
            kept = count if limit is None else np.minimum(count, limit)
            cache.active_len[:, seq] -= count - kept
            self._evictable[:, seq] = kept

    def _queue_exchange(self) -> None:
        layers, batch, heads = self._sizes
        source, destination = (buffer.address for buffer in self._core_lists)
        limit = next(rows for rows in ROWS if rows >= self._core_rows)
        self._backend.device.launch(
            f"select_core-{limit}",
            {
                "table": self._fixed.address("core"),
                "R": MOST_WEIGHTINGS,
                "Hkv": heads,
                "M": self._core_moves,
                "source": source,
                "destination": destination,
                "B": batch,
                "L": layers,
            },
        )
        self._queue_update(source, destination, self._core_moves)

    def _queue_eviction(self, text: Text) -> None:
        layers, batch, heads = self._sizes
        source, destination = (buffer.address for buffer in self._text_lists)
        limit = next(rows for rows in ROWS if rows >= max(self._rooms))
        self._backend.device.launch(
            f"select_text-{limit}",
            {
                "table": self._fixed.address("text"),
                "image_mask": text.image_mask,
                "first_image": text.first_image,
                "budget": self._step.address("budget"),
                "R": MOST_WEIGHTINGS,
                "S": 1,
                "M": TEXT_MOVES,
                "T": text.tokens,
                "source": source,
                "destination": destination,
                "remaining": self._remaining.address,
                "B": batch,
                "L": layers,
                "Hkv": heads,
            },
        )
        self._queue_update(source, destination, TEXT_MOVES)

    def _queue_update(self, source: int, destination: int, moves: int) -> None:
        place = self.cache.place
        launch_update(
            place.memory,
            self._fixed.address("append"),
            source,
            destination,
            self._sizes,
            1,
            moves,
            place.head_dim * place.element.words,
        )

"""One segment's part of a decode step on a device: what it reads, and the moves that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.kernels.catalog import MOVES, ROWS
from avl_plugins.policies import Plan
from avl_runtime.execute.device.backend import DeviceBackend
from avl_runtime.execute.device.books import DeviceBooks
from avl_runtime.execute.device.cache import DeviceCache
from avl_runtime.execute.device.tensors import (
    WEIGHTINGS,
    Nothing,
    Outputs,
    Tensor,
    Upload,
    Use,
    cache_inputs,
)
from avl_runtime.execute.device.update import launch_update

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


def selects_on_device(cache: DeviceCache, plan: Plan) -> bool:
    """Whether the selection kernels can do what `plan` asks for with a cache of this size.

    They rank by attention, not at random, and a limited number of rows. Otherwise the host selects.
    """
    core, parked = int(cache.image_rows.max()), int(cache.parked_len.max())
    if plan.split is not None and parked:
        if plan.split.seed is not None or core + parked > ROWS[-1]:
            return False
        if 2 * min(core, parked) > MOVES[-1]:
            return False
    return plan.text is None or cache.active_room <= ROWS[-1]


class SegmentSteps:
    """A segment bound to its cache as it is; bound anew when the cache is full.

    Attributes:
        books: on the device, or None where the host keeps and selects.
    """

    def __init__(
        self, backend: DeviceBackend, index: int, cache: DeviceCache, plan: Plan, text: Text | None
    ) -> None:
        """
        Raises:
            OutOfDeviceMemoryError: there is no room.
        """
        self._backend, self._index, self.cache, self._plan = backend, index, cache, plan
        self._segment = backend.manifest.segments[index]
        self._text = text
        memory, batch = backend.memory, cache.batch
        self.books = DeviceBooks(cache) if selects_on_device(cache, plan) else None
        self._nothing = Nothing(cache.place, batch)
        self._has_parked = bool(cache.parked_len.any())
        self.outputs = Outputs(
            cache.place,
            self._segment,
            backend.manifest.dims,
            (batch, 1, cache.active_room, cache.parked_room),
            last=index == len(backend.segments) - 1,
        )
        self._sizes = (cache.layers, batch, cache.place.heads)
        core, parked = int(cache.image_rows.max()), int(cache.parked_len.max())
        self._core_moves = 2 * min(core, parked)
        self._core_rows = core + parked
        fields: dict[str, tuple[tuple[int, ...], Any]] = {
            "image_rows": ((batch,), _INT64),
            "parked_len": ((batch,), _INT64),
            "append_source": ((*self._sizes, 1), _INT64),
            **dict.fromkeys(("append", "core", "text"), ((cache.layers, 8), _INT64)),
        }
        self._fixed = Upload(memory, fields)
        item = int(np.prod(self._sizes)) * _INT64.itemsize
        # Lists that selections write: source and destination.
        self._core_lists = [memory.allocate("scratch", item * self._core_moves) for _ in "sd"]
        self._text_lists = [memory.allocate("scratch", item * TEXT_MOVES) for _ in "sd"]
        self._remaining = memory.allocate("scratch", cache.layers * batch * _INT64.itemsize)

    def fields(self) -> Fields:
        """What the step's inputs hold for this segment."""
        batch, index = self.cache.batch, self._index
        return {
            f"active_len.{index}": ((batch,), _INT64),
            f"grown_len.{index}": ((batch,), _INT64),
            f"append.{index}": ((*self._sizes, 1), _INT64),
        }

    def bind(self, step: Upload, inputs: Mapping[str, Tensor]) -> None:
        """Say where inputs are; `outputs` stay where they are.

        Args:
            step: the step's own, with `fields` and, under a text budget, `budget` [B, 2] int32.
            inputs: those that do not depend on the cache, by the segment's names.
        """
        cache, fixed = self.cache, self._fixed
        self._step = step
        active_len = step.address(f"active_len.{self._index}")
        self._tensors = {
            reads: {
                **inputs,
                **cache_inputs(cache, self._segment.first_layer, active_len, length, self._nothing),
                **self.outputs.tensors(rows),
            }
            for reads, length, rows in (
                (False, None, self._nothing.rows),
                (True, fixed.address("parked_len"), cache.parked_room),
            )
        }
        fixed.host["image_rows"][:] = cache.image_rows
        fixed.host["parked_len"][:] = cache.parked_len
        fixed.host["append_source"][...] = cache.active_room + cache.parked_room
        fixed.host["append"][...] = cache.table(self.outputs.k_new, self.outputs.v_new)
        books = self.books
        if books is not None:
            for layer in range(cache.layers):
                self._fill_tables(books, layer)
        fixed.queue()

    def _fill_tables(self, books: DeviceBooks, layer: int) -> None:
        cache, fixed, outputs = self.cache, self._fixed, self.outputs
        fixed.host["text"][layer, :7] = (
            outputs.mass("active")[layer],
            outputs.mass("new")[layer],
            books.positions(layer),
            books.mass(layer),
            self._step.address(f"grown_len.{self._index}"),
            cache.active_room,
            cache.active_room,
        )
        fixed.host["core"][layer] = (
            outputs.mass("active")[layer],
            outputs.mass("parked")[layer],
            books.positions(layer),
            books.parked_positions(layer),
            fixed.address("image_rows"),
            fixed.address("parked_len"),
            cache.active_room,
            cache.parked_room,
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

    def note(self, step: Upload, alive: NDArray[np.bool_], positions: NDArray[np.int64]) -> None:
        """Put this segment's part of the next step's inputs on the host's side.

        Args:
            alive, positions: [B], of the new tokens; a finished sequence adds no row.
        """
        cache, index = self.cache, self._index
        step.host[f"active_len.{index}"][:] = cache.active_len
        step.host[f"grown_len.{index}"][:] = cache.active_len + alive
        slots = np.where(alive, cache.active_len, -1)
        step.host[f"append.{index}"][...] = slots[:, None, None]
        if self.books is not None:
            for seq in np.flatnonzero(alive).tolist():
                self.books.queue_row(seq, int(cache.active_len[seq]), int(positions[seq]))

    def _queue_exchange(self) -> None:
        layers, batch, heads = self._sizes
        source, destination = (buffer.address for buffer in self._core_lists)
        limit = next(rows for rows in ROWS if rows >= self._core_rows)
        self._backend.device.launch(
            f"select_core-{limit}",
            {
                "table": self._fixed.address("core"),
                "R": WEIGHTINGS,
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
        limit = next(rows for rows in ROWS if rows >= self.cache.active_room)
        self._backend.device.launch(
            f"select_text-{limit}",
            {
                "table": self._fixed.address("text"),
                "image_mask": text.image_mask,
                "first_image": text.first_image,
                "budget": self._step.address("budget"),
                "R": WEIGHTINGS,
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

"""Where cached rows stand, as a device's graphs are told it: what attention is biased by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avl_plugins.graph_io import ACTIVE, CACHED, PARKED, Segment, named
from avl_runtime.execute.device.rows import Place
from avl_runtime.execute.device.tensors import Tensor, Upload
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.kv.standing import Standing

_INT64 = np.dtype(np.int64)


class CachedStanding:
    """[B, F, A, Z] of active rows and [B, 1, P, Z] of parked ones, int64, for each layer.

    Engines read it of every cached row, also where no attention is biased: then all layers are
    given the same zeros.
    """

    def __init__(
        self,
        place: Place,
        graph: Segment,
        batch: int,
        rooms: tuple[Sequence[int], Sequence[int]],
        heads: int,
    ) -> None:
        """
        Args:
            rooms: A and P of each layer.
            heads: F; 0 where no attention is biased.

        Raises:
            OutOfDeviceMemoryError: there is no room.
        """
        self._layers, self._rooms = graph.layers, rooms
        self._batch, self._width = batch, graph.dims.position_axes + 1
        self._least = place.room(1)  # parked rows that are not there
        most = max([self._least, *(() if heads else (*rooms[0], *rooms[1]))])
        size = batch * most * self._width * _INT64.itemsize
        self._nowhere = place.memory.allocate("scratch", size, zero=True)
        # Ordinary steps read no parked rows, and copy nothing for them.
        self._uploads: dict[str, Upload] = {}
        for kind, of, held in zip(CACHED, (heads, 1), rooms, strict=True):
            fields = {
                named(kind.standing, layer): ((batch, of, room, self._width), _INT64)
                for layer, room in zip(self._layers, held, strict=True)
            }
            if heads:
                self._uploads[kind.name] = Upload(place.memory, fields)

    def note(
        self, standing: Standing, cache: SegmentCache, parked: bool, sequence: int = 0
    ) -> None:
        """Put on the host's side where the rows of a cache stand, parked ones if they are read.

        Args:
            sequence: of the cache, the first that `standing` is about.
        """
        if self._uploads:
            host = {kind: upload.host for kind, upload in self._uploads.items()}
            for number, layer in enumerate(self._layers):
                active = host[ACTIVE.name][named(ACTIVE.standing, layer)]
                aside = host[PARKED.name][named(PARKED.standing, layer)] if parked else None
                standing.put(cache, number, active, aside, sequence)

    def queue(self, parked: bool) -> None:
        """Queue the copy of it, of parked rows if they are read."""
        for kind, upload in self._uploads.items():
            if parked or kind == ACTIVE.name:
                upload.queue()

    def tensors(self, parked: bool) -> dict[str, Tensor]:
        """What a segment reads, by name.

        Args:
            parked: whether it reads parked rows.
        """
        found = {}
        for kind, rooms in zip(CACHED, self._rooms, strict=True):
            there = parked or kind is ACTIVE
            for layer, room in zip(self._layers, rooms, strict=True):
                name = named(kind.standing, layer)
                if self._uploads and there:
                    found[name] = self._uploads[kind.name].tensors[name]
                else:
                    shape = (self._batch, 1, room if there else self._least, self._width)
                    found[name] = Tensor(self._nowhere.address, shape)
        return found

"""Refreshes that the step kernel does itself, in the step that ranks the rows.

Rows of a refresh are swapped most cheaply right after they were read, while the processor's cache
holds them. Graphs cannot say that an op changes its inputs, so the host offers its cache to the
steps that its thread runs next, and afterwards sees whether they took it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cpu.host import Host

Ints = NDArray[np.int64]


class _Layer(ctypes.Structure):
    """`avl_refresh` of refresh.h."""

    _fields_ = (
        ("k_active", ctypes.c_void_p),
        ("active", ctypes.c_int64),
        ("parked", ctypes.c_int64),
        ("labels", ctypes.c_int64),
        ("parked_labels", ctypes.c_int64),
        ("core", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("parked_positions", ctypes.c_void_p),
        ("moved", ctypes.c_void_p),
    )


class Refresh:
    """Refreshes of the L layers of one cache, each offered to the runs inside a `with` statement.

    A run takes it layer by layer, or not at all: without the library, or where another kernel
    computes the step. Image rows are ranked by the step's mass 0, summed over the KV heads; rows
    that the core changes swap places in K and V, and their labels with them, in place.

    Attributes:
        moved: [L, B] int64, how many rows the last one swapped; -1 in layers that no run took.
    """

    __slots__ = ("_core", "_held", "_host", "_layers", "moved")

    def __init__(
        self,
        k_active: Sequence[NDArray[Any]],
        k_parked: Sequence[NDArray[Any]],
        positions: Ints,
        parked_positions: Ints,
        host: Host | None,
    ) -> None:
        """
        Args:
            k_active: L arrays [B, Hkv, rows, D]; the very memory that is bound to the graph.
            k_parked: L arrays [B, Hkv, rows, D].
            positions: [L, B, Hkv, A], labels of active rows; image rows have the same in each head.
                A is the most rows of a layer.
            parked_positions: [L, B, P].
            host: None where there is no library, and no run takes it.

        Raises:
            ValueError: labels do not lie in memory as they are indexed.
        """
        layers, batch = positions.shape[:2]
        self.moved: Ints = np.full((layers, batch), -1, np.int64)
        self._core: Ints = np.zeros((layers, batch), np.int64)
        by_layer = (self._core, positions, parked_positions, self.moved)
        if not all(labels.flags.c_contiguous for labels in by_layer):
            raise ValueError("expected contiguous labels, found strides between them")
        # Addresses are read once an array: each time costs as much as a layer's other fields.
        starts = [(labels.ctypes.data, labels.nbytes // layers) for labels in by_layer]
        labels = positions.shape[3], parked_positions.shape[2]
        self._held = (*k_active, *by_layer)  # for as long as they may be offered
        self._layers = (_Layer * layers)(
            *(
                (
                    *(active.ctypes.data, active.shape[2], parked.shape[2], *labels),
                    *(start + layer * size for start, size in starts),
                )
                for layer, (active, parked) in enumerate(zip(k_active, k_parked, strict=True))
            )
        )
        self._host = host

    def of(self, core: Ints) -> Refresh:
        """The next one.

        Args:
            core: [L, B], how many of the first active rows are the core; 0 leaves a sequence as
                it is.
        """
        self._core[:] = core
        self.moved[:] = -1
        return self

    @property
    def done(self) -> bool:
        """Whether a run took it.

        Raises:
            RuntimeError: it took some layers only.
        """
        # A list, as NumPy's functions are slow where a run has emptied the processor's caches.
        taken = [moved >= 0 for layer in self.moved.tolist() for moved in layer]
        if any(taken) and not all(taken):
            raise RuntimeError("expected a step to refresh all of its layers or none, found some")
        return any(taken)

    def __enter__(self) -> Refresh:
        if self._host is not None:
            self._host.offer(self._layers, len(self._layers))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._host is not None:
            self._host.offer(None, 0)

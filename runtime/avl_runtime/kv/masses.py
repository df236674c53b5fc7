"""Attention that rows have received from text, added up step by step for a text budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avl_plugins.cpu.host import Host
from avl_runtime.kv.by_layer import TEXT, ByLayer, Floats
from avl_runtime.kv.cache import Array, SegmentCache
from avl_runtime.kv.sight import Masses


def add(cache: SegmentCache, masses: Masses, gathers: Sequence[bool]) -> None:
    """Add a step's attention to what the rows have received that were there before it.

    Args:
        gathers: for each sequence, whether it is.
    """
    for seq, each in enumerate(gathers):
        if each:
            cache.add_mass(seq, masses.mass_active, seq)


def fresh(masses: Masses | None) -> Floats | None:
    """What a step gave the row that it made, [L, B, Hkv]."""
    return None if masses is None else masses.mass_new[:, :, :, TEXT, 0]


class Adder:
    """Does as `add`, and sets that of the new rows, by one call of the compiled library.

    Where arrays lie is looked up when one of them is another. Steps that read parked rows have
    their masses in arrays of their own, so that a few tables are kept.
    """

    __slots__ = ("_gathers", "_host", "_received", "_tables")

    def __init__(self, host: Host) -> None:
        self._host = host
        self._gathers: Sequence[bool] = ()
        self._received: Array | None = None
        self._tables: dict[int, tuple[ByLayer, Floats, Array, int, int]] = {}

    def add(
        self, cache: SegmentCache, masses: Masses, gathers: Sequence[bool], lengths: int
    ) -> None:
        """
        Args:
            lengths: where `cache.active_len` lies, which does not count the new rows yet.

        Raises:
            RuntimeError: a layer has no room for its new row, which is a fault of ours.
        """
        if cache.mass is not self._received or gathers is not self._gathers:
            self._received, self._gathers = cache.mass, gathers
            self._tables.clear()
        given = masses.mass_active
        held = self._tables.get(id(given))
        if held is None or held[0] is not given or held[1] is not masses.mass_new:
            table = self._table(cache, masses, gathers)
            held = given, masses.mass_new, table, address(table), table.shape[0] * table.shape[1]
            self._tables[id(given)] = held
        if not self._host.add_masses(held[3], lengths, held[4]):
            raise RuntimeError("expected room for a row in every layer, found none")

    def _table(self, cache: SegmentCache, masses: Masses, gathers: Sequence[bool]) -> Array:
        """`avl_masses` of each layer and sequence, [L, B, 7] int64."""
        layers, batch, heads, rows = cache.mass.shape
        table = np.empty((layers, batch, 7), np.int64)
        for layer, (received, given, new) in enumerate(
            zip(cache.mass, masses.mass_active, masses.mass_new, strict=True)
        ):
            sources = received, given[:, :, TEXT], new[:, :, TEXT]
            for column, source in enumerate(sources):
                table[layer, :, column] = address(source) + np.arange(batch) * source.strides[0]
            steps = (source.strides[1] // source.itemsize for source in sources[1:])
            table[layer, :, 3:] = heads, rows, *steps
        table[:, ~np.asarray(gathers, np.bool_), 1] = 0
        return table


def address(array: Array) -> int:
    """Where an array begins; as its `ctypes` says, in half the time."""
    found: int = array.__array_interface__["data"][0]
    return found

"""Random moves on a device cache and on the NumPy cache, run where kernels are interpreted."""

from __future__ import annotations

from typing import Any

import numpy as np

from avl_plugins.policies import DROPPED, PARKED
from avl_plugins.schema import COMPUTED
from avl_runtime.execute.device.cache import DeviceCache, device_gathered
from avl_runtime.execute.device.elements import ELEMENTS
from avl_runtime.execute.device.memory import Memory
from avl_runtime.execute.device.rows import Place, Staging
from avl_runtime.execute.device.update import Mover
from avl_runtime.kv import sight
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.kv.gather import gathered
from avl_runtime.kv.moves import evict, exchange, place, roll_back
from device.standin import HostDevice

LAYERS, HEADS, DIM = 2, 2, 16
BOOKS = ("positions", "mass", "parked_positions", "active_len", "parked_len", "image_rows")


def place_of(
    device: HostDevice, dtype: str = "fp16", row_block: int = 8, *, park_on_host: bool = False
) -> Place:
    element, memory = ELEMENTS[dtype], Memory(device)
    mover = Mover(memory, DIM * element.words)
    staging = Staging(memory) if park_on_host else None
    return Place(memory, mover, element, HEADS, DIM, row_block, staging)


def content(element: Any, sequence: int, positions: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """K and V [L, 1, Hkv, S, D] of tokens, every number telling where it belongs."""
    layer, head, token, column = np.ix_(range(LAYERS), range(HEADS), positions, range(DIM))
    k = ((((sequence * LAYERS + layer) * HEADS + head) * 61 + token) * DIM + column) % 1999
    rows = element.encode(k[:, None].astype(np.float32))
    return rows, element.encode(element.decode(rows) + 1)


class Pair:
    """One sequence in both kinds of cache."""

    def __init__(self, place: Place, sequence: int = 0) -> None:
        self.place, self.sequence = place, sequence
        element = place.element
        self.host = SegmentCache(1, HEADS, [COMPUTED.planes(DIM, element.stored)] * LAYERS)
        self.device = DeviceCache(place, LAYERS)

    def add(self, positions: np.ndarray[Any, Any], mass: np.ndarray[Any, Any] | None) -> None:
        k, v = content(self.place.element, self.sequence, positions)
        self.host.extend((k, v), 0, positions, mass)
        kept = [upload(self.place, array[layer]) for array in (k, v) for layer in range(LAYERS)]
        addresses = [buffer.address for buffer in kept]
        new = addresses[:LAYERS], addresses[LAYERS:]
        self.device.add(new, 0, positions, mass)

    def both(self, move: Any, *arguments: Any) -> None:
        move(self.host, *arguments)
        move(self.device, *arguments)
        self.device.settle()


def upload(place: Place, array: np.ndarray[Any, Any]) -> Any:
    array = np.ascontiguousarray(array)
    buffer = place.memory.allocate("scratch", array.nbytes)
    place.memory.device.upload(buffer.address, array)
    return buffer


def check(host: SegmentCache, device: DeviceCache, sequences: list[int]) -> None:
    """Same books, same rows in the same slots, and each row that of the token it is said to be."""
    place, stand_in = device.place, device.place.memory.device
    element = place.element
    device.fetch()
    top, apart = max(host.tops), int(host.parked_len.max())
    tops = {"positions": top, "mass": top, "parked_positions": apart}
    for name in BOOKS:
        cut = (..., slice(tops.get(name)))
        assert np.array_equal(getattr(host, name)[cut], getattr(device, name)[cut]), name
    for layer in range(LAYERS):
        rows = device.rows[layer]
        for kind, where, room in (
            ("k", "active", rows.active),
            ("v", "active", rows.active),
            ("k", "parked", rows.parked),
            ("v", "parked", rows.parked),
        ):
            shape = (device.batch, HEADS, room, DIM)
            found = stand_in.read(getattr(rows, f"{kind}_{where}").address, shape, element.stored)
            assert np.isfinite(element.decode(found)).all()
            expected = getattr(host, f"{kind}_{where}")[layer]
            for b, sequence in enumerate(sequences):
                count = int(getattr(host, f"{where}_len")[layer, b])
                assert np.array_equal(found[b, :, :count], expected[b, :, :count])
                for h in range(HEADS):
                    tokens = (
                        host.positions[layer, b, h]
                        if where == "active"
                        else host.parked_positions[layer, b]
                    )[:count]
                    whole = content(element, sequence, tokens)[kind == "v"]
                    assert np.array_equal(found[b, h, :count], whole[layer, 0, h])


def random_division(
    rng: Any, host: SegmentCache, device: DeviceCache, row: int, mask: np.ndarray[Any, Any]
) -> None:
    """Every layer keeps and parks as many image rows as it likes."""
    fates = np.zeros((LAYERS, len(mask)), np.int8)
    for (first, last), positions in sight.images(host, row, mask):
        for layer, alive in zip(range(first, last), positions, strict=True):
            chosen = rng.permutation(alive)
            core, kept = np.sort(rng.integers(0, len(chosen) + 1, 2))
            fates[layer, chosen[core:]] = PARKED
            fates[layer, chosen[kept:]] = DROPPED
    for cache in (host, device):
        place(cache, row, fates, mask)
    device.settle()


def random_exchange(rng: Any, host: SegmentCache, device: DeviceCache, row: int) -> None:
    for (first, last), _, _ in list(sight.core_and_parked(host, row, None)):
        core, parked = int(host.image_rows[first, row]), int(host.parked_len[first, row])
        leaving = np.zeros((last - first, core), np.bool_)
        entering = np.zeros((last - first, parked), np.bool_)
        for layer in range(last - first):
            count = rng.integers(0, min(core, parked) + 1)
            leaving[layer, rng.permutation(core)[:count]] = True
            entering[layer, rng.permutation(parked)[:count]] = True
        for cache in (host, device):
            exchange(cache, row, leaving, entering, first)
    device.settle()


def random_eviction(
    rng: Any, host: SegmentCache, device: DeviceCache, row: int, mask: np.ndarray[Any, Any]
) -> None:
    for layer in range(LAYERS):
        length = int(host.active_len[layer, row])
        text = ~mask[host.positions[layer, row, :, :length]]
        count = int(rng.integers(0, min(6, int(text[0].sum()) + 1)))
        dropped = np.zeros((1, HEADS, count), np.int64)
        for head in range(HEADS):
            dropped[0, head] = np.sort(rng.permutation(np.flatnonzero(text[head]))[:count])
        for cache in (host, device):
            evict(cache, row, dropped, layer)
    device.settle()


def any_sequence_of_moves(seed: int, dtype: str, row_block: int, park_on_host: bool) -> None:
    """Two turns of one sequence: prompts in chunks, partitions, evictions, exchanges."""
    rng = np.random.default_rng(seed)
    pair = Pair(place_of(HostDevice(), dtype, row_block, park_on_host=park_on_host))
    image_mask = np.zeros(200, np.bool_)
    count = 0
    for _turn in range(2):
        total, images = int(rng.integers(2, 20)), int(rng.integers(0, 15))
        image_mask[count + rng.permutation(total)[:images]] = True
        before = pair.device.copy()
        reference = pair.host.copy()
        for chunk in np.array_split(np.arange(count, count + total), rng.integers(1, 4)):
            if len(chunk):
                mass = rng.random((LAYERS, 1, HEADS, len(chunk))).astype(np.float32)
                pair.add(chunk, mass)
        count += total
        check(pair.host, pair.device, [0])
        random_division(rng, pair.host, pair.device, 0, image_mask)
        check(pair.host, pair.device, [0])
        random_eviction(rng, pair.host, pair.device, 0, image_mask)
        check(pair.host, pair.device, [0])
        # What a failed prompt goes back to.
        check(reference, before, [0])
        random_exchange(rng, pair.host, pair.device, 0)
        check(pair.host, pair.device, [0])
        pair.device.resize([top + int(rng.integers(0, 20)) for top in pair.device.tops])
        check(pair.host, pair.device, [0])


def a_batch(seed: int, park_on_host: bool) -> None:
    """Sequences of different lengths in one cache, and moves of each."""
    rng = np.random.default_rng(seed)
    place = place_of(HostDevice(), park_on_host=park_on_host)
    image_mask = np.zeros(100, np.bool_)
    image_mask[1:8] = True
    pairs = [Pair(place, sequence) for sequence in range(3)]
    for pair, length in zip(pairs, (12, 19, 9), strict=True):
        pair.add(np.arange(length), None)
        random_division(rng, pair.host, pair.device, 0, image_mask)
    host = gathered([(pair.host, 0) for pair in pairs], 4)
    device = device_gathered([(pair.device, 0) for pair in pairs], 4)
    check(host, device, [0, 1, 2])
    for row in (2, 0, 1, 0):
        random_exchange(rng, host, device, row)
        random_eviction(rng, host, device, row, image_mask)
        check(host, device, [0, 1, 2])
    random_division(rng, host, device, 1, image_mask)
    check(host, device, [0, 1, 2])
    # One leaves and is back in front.
    alone = host.taken(1), device.taken(1)
    check(*alone, [1])
    host = gathered([(alone[0], 0), (host, 2), (host, 0)], 4)
    device = device_gathered([(alone[1], 0), (device, 2), (device, 0)], 4)
    del alone
    random_exchange(rng, host, device, 0)
    for cache in (host, device):
        roll_back(cache, 1, int(cache.positions[:, 1].max()))
    check(host, device, [1, 2, 0])
    alone = 4 * LAYERS * 2 * HEADS * DIM * place.element.stored.itemsize
    del pairs
    memory = place.memory
    assert memory.used["active"] + memory.used["parked"] + memory.parked_on_host == device.nbytes
    assert (memory.used["parked"] == 0) == park_on_host == (memory.parked_on_host > 0)
    assert device.nbytes > alone


def long_lists(seed: int) -> None:
    """More moves than one launch takes, in a prompt and in a refresh."""
    rng = np.random.default_rng(seed)
    pair = Pair(place_of(HostDevice(), row_block=1))
    images = 5200
    image_mask = np.zeros(images + 4, np.bool_)
    image_mask[:images] = True
    pair.add(np.arange(images + 4), None)
    fates = np.zeros((LAYERS, images + 4), np.int8)
    fates[:, 1:images:2] = PARKED
    pair.both(place, 0, fates, image_mask)
    everything = np.ones((LAYERS, images // 2), np.bool_)
    everything[1, rng.permutation(images // 2)[:100]] = False
    pair.both(exchange, 0, everything, everything)
    check(pair.host, pair.device, [0])

"""Layers that hold different numbers of rows have room of their own on the stand-in too."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avl_plugins.policies import DROPPED, PARKED, Policy, parse
from avl_runtime import LVLM
from avl_runtime.execute.device import growth
from avl_runtime.execute.device.protocol import OutOfDeviceMemoryError
from avl_runtime.generate.prefill import finished
from avl_runtime.kv.moves import place as move_to
from avl_runtime.package.engine_sets import Limits
from avl_runtime.requests import Scheduler
from avl_runtime.tasks import sample
from device import cache_cases
from device.cache_cases import Pair, check, place_of
from device.loop_cases import ask, interpreted_reply, on_stand_in, same
from device.standin import HostDevice
from support.pyramid import Pyramid, Stairs

POLICIES = (Pyramid(), Pyramid(fixed=True), Pyramid(text=True), Stairs())
Make = Callable[..., tuple[LVLM, Any]]


@pytest.fixture
def make(tiny_package: Path, tmp_path: Path) -> Make:
    """avl-tiny on a stand-in, with the stand-in."""
    return lambda *args, **options: on_stand_in(tiny_package, tmp_path / "made", *args, **options)


@pytest.mark.parametrize("park_on_host", [False, True])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_layer_takes_the_bytes_of_its_own_rows(
    make: Make, policy: Policy, park_on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "GROWTH", 8)
    model, _ = make(park_on_host=park_on_host)
    loaded, dims, memory = model.loaded, model.package.manifest.dims, model.loaded.backend.memory
    row, one = 2 * dims.num_kv_heads * dims.head_dim * 4, sample("caption", "held-out", 3)
    sequence, decoder = loaded.sequence(policy), loaded.decoder()
    finished(loaded.prefill(sequence, loaded.processor.encode(one.prompt, [one.image])))
    tops = [top for cache in sequence.caches for top in cache.tops]
    apart = [rows for cache in sequence.caches for rows in cache.parked_len[:, 0].tolist()]
    decoder.join([sequence], 30)

    def blocks(rows: int) -> int:
        return -(-max(1, rows) // 8) * 8

    rooms, parked = [blocks(top + 8) for top in tops], sum(map(blocks, apart))
    seen = set()
    for left in range(30, 0, -1):
        if any(map(int.__ge__, tops, rooms)):  # every layer then gets what it deserves anew
            rooms = [blocks(top + min(left, 8)) for top in tops]
        decoder.run([5])
        tops = [top for cache in sequence.caches for top in cache.tops]
        assert memory.used["active"] == row * sum(rooms)
        assert memory.used["parked"] + memory.parked_on_host == row * parked
        assert sequence.nbytes == row * (sum(rooms) + parked)
        live = [(one.active_len + one.parked_len).sum() for one in sequence.caches]
        dense = row * dims.num_layers * sequence.length
        assert sequence.row_bytes() == (row * sum(live), dense)
        seen.add(tuple(rooms))
    assert len(seen) > 1 or policy == Pyramid(text=True)  # whose text stays as long as it is
    assert all(len(set(each)) > 2 for each in seen) or policy == Pyramid(fixed=True)
    assert (memory.used["parked"] == 0) == park_on_host


@pytest.mark.parametrize("park_on_host", [False, True])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_replies_and_turns_are_those_of_ort_cpu(
    make: Make, tiny: LVLM, policy: Policy, park_on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "GROWTH", 8)
    model, device = make(park_on_host=park_on_host)
    chats = [each.chat(policy=policy) for each in (model, tiny)]
    one, other = sample("caption", "held-out", 3), sample("caption", "held-out", 5)
    for prompt, images in ((one.prompt, [one.image]), ("And?", []), (other.prompt, [other.image])):
        found, expected = (
            chat.send(prompt, images, max_new_tokens=18, return_logits=True, return_placements=True)
            for chat in chats
        )
        same(found, expected)
    selected = {name.partition("-")[0] for name in device.done if name.startswith("select")}
    assert selected == {Pyramid(fixed=True): {"select_core"}, Stairs(): {"select_text"}}.get(
        policy, set()
    )
    forks = [chat.fork() for chat in chats]
    both = [forks, chats]
    for pair in both:
        same(*(chat.send("Go on.", max_new_tokens=6, return_logits=True) for chat in pair))


@pytest.mark.parametrize("park_on_host", [False, True])
def test_sequences_come_and_go(make: Make, tiny: LVLM, park_on_host: bool) -> None:
    limits = Limits(decode_rows=8, prompt_rows=64, cache_rows=512, batch=4)
    model, _ = make(limits, park_on_host=park_on_host)
    policies: list[Policy] = [*POLICIES, parse("dense"), parse("avl"), Stairs()]
    scheduler, waiting, begun = Scheduler(model), list(enumerate(policies)), []
    while waiting or scheduler.requests:
        if waiting and len(scheduler.requests) < 4:
            number, policy = waiting.pop(0)
            one = sample("caption", "held-out", 3 + number)
            request = scheduler.add(
                one.prompt,
                [one.image],
                policy=policy,
                max_new_tokens=16 - number,
                return_logits=True,
                return_placements=True,
            )
            begun.append((number, policy, request))
        scheduler.step()
    for number, policy, request in begun:
        expected = ask(tiny, policy, 16 - number, 3 + number, return_placements=True)
        same(request.result, expected)
    memory = model.loaded.backend.memory
    del scheduler, request, begun
    gc.collect()
    assert memory.used["active"] == memory.used["parked"] == memory.parked_on_host == 0


@pytest.mark.parametrize("policy", [Pyramid(fixed=True), Stairs()], ids=str)
def test_interpreted_kernels(
    interpreting: ProcessPoolExecutor, tiny_package: Path, tmp_path: Path, policy: Policy
) -> None:
    done = interpreting.submit(interpreted_reply, tiny_package, tmp_path, policy, 3).result()
    assert done["select_core-1024" if policy == Pyramid(fixed=True) else "select_text-1024"]


def test_rows_are_taken_back(make: Make, tiny: LVLM) -> None:
    """Book-keeping of layers with different rooms comes back from the device as it was."""
    model, _ = make()
    one, books = sample("caption", "held-out", 3), []
    for each in (model, tiny):
        loaded = each.loaded
        sequence, decoder = loaded.sequence(Pyramid()), loaded.decoder()
        finished(loaded.prefill(sequence, loaded.processor.encode(one.prompt, [one.image])))
        decoder.join([sequence], 12)
        decoder.run([5])
        length = sequence.length
        sequence.roll_back(length - 1)
        sequence.step = 0
        logits = [decoder.run([token])[0].copy() for token in (5, 6, 7)]
        rows = [
            sorted(cache.positions[layer, 0, head, : cache.active_len[layer, 0]].tolist())
            for cache in sequence.caches
            for layer in range(cache.layers)
            for head in range(cache.positions.shape[2])
        ]
        books.append((np.array(logits), rows))
    assert np.allclose(books[0][0], books[1][0], atol=2e-3)
    assert books[0][1] == books[1][1]


def test_memory_that_runs_out_between_layers_leaves_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some layers have moved, others not: parked rows of each still have a place to be read at."""
    monkeypatch.setattr(cache_cases, "LAYERS", 3)
    fates, mask = np.zeros((3, 60), np.int8), np.arange(60) < 45
    for fate, parked in zip(fates, (10, 30, 20), strict=True):
        fate[5 : 5 + parked], fate[5 + parked : 45] = PARKED, DROPPED
    moved = set()
    for spare in range(0, 100_000, 3_000):
        device = HostDevice(interpreted=False)
        pair = Pair(place_of(device, park_on_host=True))
        pair.add(np.arange(60), None)
        pair.both(move_to, 0, fates, mask)
        before = pair.device.active_rooms
        device.total -= device.memory()[0] - spare
        with suppress(OutOfDeviceMemoryError):
            pair.device.resize([150, 200, 250])
        device.total = 1 << 30
        moved.add(sum(map(int.__ne__, pair.device.active_rooms, before)))
        check(pair.host, pair.device, [0])
    assert moved == {0, 1, 2, 3}

"""Layers that hold different numbers of rows, and room for as many: bytes, batches, chats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from avl_plugins import cpu
from avl_plugins.policies import Policy, parse
from avl_runtime import LVLM
from avl_runtime.generate.prefill import extend, finished
from avl_runtime.generate.results import Result
from avl_runtime.generate.sequence import Sequence
from avl_runtime.kv.growth import room
from avl_runtime.requests import Scheduler
from avl_runtime.tasks import sample
from support.pyramid import Pyramid, Stairs

POLICIES = (Pyramid(), Pyramid(fixed=True), Pyramid(text=True), Stairs())


@pytest.fixture(params=[True, False], ids=["kernels", "numpy"])
def model(
    request: pytest.FixtureRequest, tiny: LVLM, tiny_package: Any, monkeypatch: pytest.MonkeyPatch
) -> LVLM:
    if request.param:
        return tiny
    monkeypatch.setenv(cpu.SWITCH, "off")
    return LVLM.load(tiny_package, backend="ort-cpu")


def ask(model: LVLM, policy: Policy, number: int = 0, tokens: int = 12) -> Result:
    one = sample("caption", "held-out", number)
    return model.generate(
        one.prompt,
        [one.image],
        policy=policy,
        max_new_tokens=tokens,
        return_logits=True,
        return_placements=True,
    )


def same(found: Result, expected: Result) -> None:
    assert found.token_ids == expected.token_ids
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(found.placements, expected.placements, strict=True):
        np.testing.assert_array_equal(ours.core, theirs.core)
        np.testing.assert_array_equal(ours.parked, theirs.parked)


def read(model: LVLM, policy: Policy, steps: int = 0) -> Sequence:
    loaded, one = model.loaded, sample("caption", "held-out", 0)
    sequence, prompt = loaded.sequence(policy), loaded.processor.encode(one.prompt, [one.image])
    finished(loaded.prefill(sequence, prompt, steps=steps))
    return sequence


def begun(model: LVLM, policy: Policy, steps: int) -> tuple[Sequence, Any]:
    sequence, decoder = read(model, policy), model.loaded.decoder()
    decoder.join([sequence], steps)
    return sequence, decoder


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_layer_takes_the_bytes_of_its_own_rows(model: LVLM, policy: Policy) -> None:
    steps, dims = 40, model.package.manifest.dims
    row = 2 * dims.num_kv_heads * dims.head_dim * 4
    sequence, decoder = begun(model, policy, steps)
    rooms = []
    for cache in sequence.caches:
        rooms += [top + room(top, steps) for top in cache.tops]
    apart = [max(1, rows) for cache in sequence.caches for rows in cache.parked_len[:, 0].tolist()]
    assert len(set(rooms)) * len(set(apart)) >= dims.num_layers
    assert sequence.nbytes == row * (sum(rooms) + sum(apart))
    if policy == Pyramid():  # room of the largest layer for all would take a quarter more
        assert sum(rooms) + sum(apart) < 0.8 * dims.num_layers * (max(rooms) + max(apart))
    for step in range(steps):
        before = [top for cache in sequence.caches for top in cache.tops]
        decoder.run([5])
        for index, top in enumerate(before):
            if top == rooms[index]:  # the new row came before text went
                rooms[index] += room(top, steps - step)
        assert sequence.nbytes == row * (sum(rooms) + sum(apart))
        dense = row * dims.num_layers * sequence.length
        assert sequence.row_bytes() == (sum(sequence.bytes_held()), dense)
    assert all(cache.positions.shape[3] == max(cache.rooms) for cache in sequence.caches)


@pytest.mark.parametrize("policy", ["dense", "fastv"])
@pytest.mark.parametrize("steps", [0, 12, 100, 10**6])
def test_a_prompt_is_not_copied_before_its_reply(policy: str, steps: int, model: LVLM) -> None:
    sequence, decoder = read(model, parse(policy), steps), model.loaded.decoder()
    before = [array for cache in sequence.caches for plane in cache.active for array in plane]
    decoder.join([sequence], min(steps, sequence.room_left()))
    after = [array for cache in sequence.caches for plane in cache.active for array in plane]
    assert all(one is other for one, other in zip(after, before, strict=True))
    assert all(
        held == top + room(top, min(steps, sequence.room_left()))
        for cache in sequence.caches
        for held, top in zip(cache.rooms, cache.tops, strict=True)
    )


def test_a_batch_of_them_gives_what_each_gives_alone(model: LVLM) -> None:
    policies = [*POLICIES, parse("dense"), parse("avl:text=0.5,text_min=4"), Pyramid(text=True)]
    scheduler, waiting, requests = Scheduler(model), list(enumerate(policies)), []
    while waiting or scheduler.requests:
        if waiting:
            number, policy = waiting.pop(0)
            one = sample("caption", "held-out", number)
            requests.append(
                scheduler.add(
                    one.prompt,
                    [one.image],
                    policy=policy,
                    max_new_tokens=18 - 2 * number,
                    return_logits=True,
                    return_placements=True,
                )
            )
        scheduler.step()
        scheduler.step()
    for number, (policy, request) in enumerate(zip(policies, requests, strict=True)):
        same(request.result, ask(model, policy, number, 18 - 2 * number))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_room_that_was_there_and_room_that_comes_row_by_row(
    model: LVLM, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(model, policy, tokens=20)
    monkeypatch.setattr("avl_runtime.kv.cache.room", lambda rows, steps: 1)
    found = ask(model, policy, tokens=20)
    same(found, expected)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_turns_of_forks_are_as_if_each_were_the_only_one(model: LVLM, policy: Policy) -> None:
    one, two = (sample("caption", "held-out", number) for number in (1, 2))
    options: dict[str, Any] = {"max_new_tokens": 9, "return_logits": True}

    def chat() -> Any:
        made = model.chat(policy=policy)
        made.send(one.prompt, [one.image], **options)
        return made

    first, expected = chat(), (chat(), chat())
    other = first.fork()
    same(
        other.send(two.prompt, [two.image], **options),
        expected[0].send(two.prompt, [two.image], **options),
    )
    same(first.send("And now?", **options), expected[1].send("And now?", **options))


def test_rows_are_taken_back(model: LVLM) -> None:
    policy = Pyramid()
    plain, decoder = begun(model, policy, 32)
    wanted = [decoder.run([token])[0].copy() for token in (5, 6, 7)]
    sequence, decoder = begun(model, policy, 32)
    del plain
    decoder.run([5])
    loaded, length = model.loaded, sequence.length
    hidden = loaded.embedding.lookup(np.array([6, 9, 11]))
    extend(sequence, loaded.package.manifest, hidden, [6, 9, 11])
    sequence.roll_back(length)
    sequence.step = 1
    found = [decoder.run([token])[0].copy() for token in (6, 7)]
    np.testing.assert_allclose(found, wanted[1:], atol=1e-5, rtol=1e-5)

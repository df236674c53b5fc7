"""Who runs now: places by turns of clients, and room for cached rows."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.generate.options import Options
from avl_runtime.generate.sequence import Sequence
from avl_runtime.requests import Scheduler
from avl_runtime.requests.request import Request
from avl_runtime.serve.admission import Admission
from avl_runtime.serve.app import App
from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.http.guard import Guard
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.rows import Need, Rows, most_bytes, usual_limit
from avl_runtime.serve.shelf import Shelf
from avl_runtime.tasks import sample
from support.server import CHAT, LONG, MODEL, ONE, question

CLIENTS = (b"a", b"b", b"c")


@dataclass
class Asked:
    """A request of a client, and the requests that were let in while it was the client's next."""

    client: bytes
    count: int
    task: asyncio.Task[None] = field(init=False)
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    before: Counter[bytes] = field(default_factory=Counter)
    runs: bool = False
    sent_away: bool = False


Acts = st.lists(
    st.tuples(st.sampled_from(["come", "come", "leave", "cancel"]), st.integers(0, 99)),
    max_size=60,
)


@given(Acts, st.integers(1, 3), st.integers(0, 6))
@settings(deadline=None)
def test_clients_take_turns(acts: list[tuple[str, int]], places: int, queue: int) -> None:
    """Nobody's first request waits for two of another; a client's own keep their order."""
    all_asked: list[Asked] = []

    async def run(one: Asked, admission: Admission) -> None:
        try:
            async with admission.places(one.count, one.client):
                for other in waiting():
                    firsts = [each for each in waiting() if each.client == other.client]
                    if other is firsts[0]:
                        other.before[one.client] += other.client != one.client
                    else:
                        assert other.client != one.client or one is not other
                mine = [each for each in waiting() if each.client == one.client]
                assert mine[0] is one  # in the order in which they came
                one.runs = True
                await one.leave.wait()
        except ApiError as error:
            assert error.status == 429
            one.sent_away = True
        finally:
            one.runs = False

    def waiting() -> list[Asked]:
        return [one for one in all_asked if not one.task.done() and not one.runs]

    async def tried() -> None:
        admission = Admission(places, queue)
        for act, number in acts:
            if act == "come":
                one = Asked(CLIENTS[number % 3], 1 + number // 3 % places)
                all_asked.append(one)
                one.task = asyncio.create_task(run(one, admission))
            elif act == "leave":
                running = [one for one in all_asked if one.runs]
                if running:
                    running[number % len(running)].leave.set()
            elif waiting():
                waiting()[number % len(waiting())].task.cancel()
            for _ in range(6):
                await asyncio.sleep(0)
            running = [one for one in all_asked if one.runs]
            assert admission.running == sum(one.count for one in running) <= places
            assert admission.waiting == len(waiting()) <= queue
            if waiting():  # somebody for whom there is no place is next
                assert admission.running > 0
            for one in all_asked:
                assert all(times <= 1 for times in one.before.values())
        while not all(one.task.done() for one in all_asked):
            for one in all_asked:
                one.leave.set()
            await asyncio.sleep(0)
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(tried())


def test_a_full_queue_is_shared() -> None:
    """Whoever has most in it gives way, as long as the other has less."""

    async def tried() -> None:
        admission = Admission(1, 4)
        order: list[tuple[bytes, int]] = []
        gate = asyncio.Event()

        async def run(client: bytes, number: int) -> None:
            async with admission.places(1, client):
                order.append((client, number))
                await gate.wait()

        async def come(client: bytes, number: int) -> asyncio.Task[None]:
            task = asyncio.create_task(run(client, number))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return task

        many = [await come(b"many", number) for number in range(5)]
        few = [await come(b"few", number) for number in range(3)]
        assert [task.done() for task in many] == [False, False, False, True, True]
        assert [task.done() for task in few] == [False, False, True]
        gate.set()
        found = await asyncio.gather(*many, *few, return_exceptions=True)
        sent = [error.status for error in found if isinstance(error, ApiError)]
        assert sent == [429] * 3
        assert order == [(b"many", 0), (b"many", 1), (b"few", 0), (b"many", 2), (b"few", 1)]

    asyncio.run(tried())


def need(rows: int, choices: int = 1, steps: int = 4, parked: int = 0) -> Need:
    return Need(choices, steps, (rows, rows), (parked, parked), ((10, 5),) * 2)


def test_rows_are_given_in_the_order_of_coming() -> None:
    """Who needs less does not overtake; who is cancelled leaves room; what never fits is told."""

    async def tried() -> None:
        limit = most_bytes([need(100), need(100)])
        rows = Rows(limit)
        order: list[int] = []
        leave = [asyncio.Event() for _ in range(5)]

        async def run(number: int, one: Need) -> None:
            async with rows.room("model", one):
                order.append(number)
                await leave[number].wait()

        async def settled() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        needs = (need(100), need(120), need(10), need(100))
        tasks = [asyncio.create_task(run(number, one)) for number, one in enumerate(needs)]
        await settled()
        assert (order, rows.waiting, rows.reserved) == ([0], 3, most_bytes(needs[:1]))
        tasks[1].cancel()
        await settled()
        assert (order, rows.waiting) == ([0, 2], 1)
        leave[2].set()
        await settled()
        assert (order, rows.waiting, rows.reserved) == ([0, 2, 3], 0, limit)
        waiting = asyncio.create_task(run(4, need(1)))
        await settled()
        leave[0].set()
        leave[3].set()
        await asyncio.sleep(0)
        waiting.cancel()  # it has been let in, and may not know yet
        await asyncio.gather(*tasks, waiting, return_exceptions=True)
        assert (rows.reserved, rows.waiting) == (0, 0)
        with pytest.raises(ApiError, match=f"at most {limit} bytes, found .* 2 x 100 tokens"):
            await Rows(limit).room("model", need(100, 2, 4000)).__aenter__()
        async with Rows(None).room("model", need(1 << 40)):
            pass
        assert most_bytes([]) == 0

    asyncio.run(tried())


POLICIES = ("dense", "avl", "uniform+avl", "avl:keep=0.5,core=0.3,refresh=2", "avl+fastv")


def held(requests: list[Request]) -> int:
    """Bytes of all arrays of cached rows."""
    sequences: list[Sequence] = [one.sequence for one in requests if not one.done]
    caches = {id(cache): cache for sequence in sequences for cache in sequence.caches}
    return sum(cache.nbytes for cache in caches.values())


@pytest.mark.parametrize("policies", [POLICIES, POLICIES[1:2], POLICIES[2:3]], ids=str)
def test_rows_never_take_more_than_was_held_for_them(tiny: LVLM, policies: tuple[str, ...]) -> None:
    """Of requests alone and in a batch, of unlike lengths and policies, at any step."""
    scheduler, loaded = Scheduler(tiny), tiny.loaded
    dims = tiny.package.manifest.dims
    requests, needs = [], []
    for number, name in enumerate(policies):
        one = sample("caption", "held-out", 90 + number)
        text = " ".join([one.prompt, *["and"] * (40 * number)])
        prompt = loaded.processor.encode(text, [one.image] * (1 + number % 2))
        options = Options(max_new_tokens=3 + 11 * number, min_new_tokens=3 + 11 * number)
        requests.append(scheduler.submit(Request(loaded, prompt, parse(name), options)))
        needs.append(Need.of(requests[-1:], dims, loaded.executor))
    most = 0
    while scheduler.requests:
        scheduler.step()
        left = [one for one, request in zip(needs, requests, strict=True) if not request.done]
        found = held(requests)
        assert found <= most_bytes(left)
        most = max(most, found)
    assert most > 0.4 * most_bytes(needs)  # nor is it much too much


def test_what_is_dropped_before_a_layer_needs_no_row_there(tiny: LVLM) -> None:
    one = sample("caption", "held-out", 90)
    prompt = tiny.loaded.processor.encode(one.prompt, [one.image])

    def of(policy: str) -> Need:
        request = Request(tiny.loaded, prompt, parse(policy), Options(max_new_tokens=5))
        dims = tiny.package.manifest.dims
        return Need.of([request] * 2, dims, tiny.loaded.executor)

    whole, visual = len(prompt.input_ids) + 4, int(prompt.image_mask.sum())
    assert of("dense").active == (whole,) * 6 and of("dense").parked == (0,) * 6
    assert of("uniform:tokens=8").active == (whole - visual + 8,) * 6
    assert of("fastv:keep=0.5").active == (whole,) * 2 + (whole - visual // 2,) * 4
    divided = of("avl:keep=0.5,core=0.25")
    assert divided.active == (whole,) * 6
    assert divided.parked == (visual // 2 - visual // 4,) * 6 and divided.choices == 2


def test_states_are_held_beside_rows() -> None:
    one = need(3, choices=2)
    assert most_bytes([replace(one, state_bytes=7)]) == most_bytes([one]) + 2 * 7


def test_half_of_what_weights_leave_is_for_rows() -> None:
    assert usual_limit(3 << 30, 16 << 30) == 13 << 29
    assert usual_limit(16 << 30, 16 << 30) == 2 << 30
    assert usual_limit(1, None) is None


async def asked(app: App, body: dict[str, Any], key: str = "") -> tuple[int, dict[str, Any]]:
    """What an application answers a request whose client stays."""
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {key}".encode())]
    await app({"type": "http", "method": "POST", "path": CHAT, "headers": headers}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_server_holds_rows_for_its_answers(
    tiny_package: Path, tiny: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long answer fits, a second waits until it is over, and what never fits is refused."""
    go, step = threading.Event(), Scheduler.step

    def held_up(self: Scheduler) -> list[Request]:
        assert go.wait(300)
        return step(self)

    monkeypatch.setattr(Scheduler, "step", held_up)
    request = tiny.request("Go on.", max_new_tokens=20)
    executor = tiny.loaded.executor
    limit = most_bytes([Need.of([request], tiny.package.manifest.dims, executor)])
    limits = Limits(kv_bytes=limit)
    shorter = LONG | {"max_tokens": 20, "min_new_tokens": 20}

    async def tried() -> None:
        shelf = Shelf({MODEL: tiny_package}, limits, backend="ort-cpu")
        app = App(shelf, limits, Guard((), None), None)
        rows = app.answering.rows
        first = asyncio.create_task(asked(app, shorter))
        while not rows.reserved:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(asked(app, shorter))
        while not rows.waiting:
            await asyncio.sleep(0.001)
        assert rows.reserved == rows.limit == limit
        given_up = asyncio.create_task(asked(app, shorter))
        while rows.waiting < 2:
            await asyncio.sleep(0.001)
        given_up.cancel()
        while rows.waiting > 1:
            await asyncio.sleep(0.001)
        go.set()
        assert (await first)[0] == 200
        status, told = await second
        assert status == 200 and told["usage"]["completion_tokens"] == 20
        await asyncio.wait([given_up])
        assert (rows.reserved, rows.waiting, app.answering.admission.running) == (0, 0, 0)
        for larger in (shorter | {"max_tokens": 21}, shorter | {"n": 2}):
            status, told = await asked(app, larger)
            assert status == 400 and "more --kv-bytes" in told["error"]["message"], told
        go.clear()  # who waits for room when the server stops is sent away
        first = asyncio.create_task(asked(app, shorter))
        while not rows.reserved:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(asked(app, shorter))
        while not rows.waiting:
            await asyncio.sleep(0.001)
        app.answering.cut()
        go.set()
        status, told = await first
        assert status == 200 and told["choices"][0]["avl"]["cut"] == "shutdown", told
        assert (await second)[0] == 503
        assert (rows.reserved, rows.waiting, app.answering.admission.running) == (0, 0, 0)
        await app.close()

    asyncio.run(tried())


def test_keys_take_turns(tiny_package: Path) -> None:
    """The one answer that a second key asks for does not wait for all of the first's."""
    keys = ("key-of-many-requests", "key-of-one-request")
    limits = Limits(running=1)

    async def tried() -> None:
        shelf = Shelf({MODEL: tiny_package}, limits, backend="ort-cpu")
        app = App(shelf, limits, Guard(keys, None), None)
        body = {"model": MODEL, "messages": question(ONE), "max_tokens": 2}
        order: list[str] = []

        async def ask(key: str) -> None:
            status, _ = await asked(app, body, key)
            assert status == 200
            order.append(key)

        tasks = [asyncio.create_task(ask(keys[0])) for _ in range(4)]
        while app.answering.admission.waiting < 3:
            await asyncio.sleep(0)
        tasks.append(asyncio.create_task(ask(keys[1])))
        await asyncio.gather(*tasks)
        assert order.index(keys[1]) <= 2
        await app.close()

    asyncio.run(tried())

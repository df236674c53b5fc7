"""What is slow, or would take too much, ends: heads, bodies, readers, answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from avl_runtime import LVLM
from avl_runtime.serve.answering import SENDING, _sent
from avl_runtime.serve.app import App
from avl_runtime.serve.asked.fields import chat_request
from avl_runtime.serve.decoding.processes import Decoders
from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.http import connections
from avl_runtime.serve.http.bodies import GoneError, Held
from avl_runtime.serve.http.connections import Connection
from avl_runtime.serve.http.guard import Guard
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.pictures import Pictures
from avl_runtime.serve.served import Served
from avl_runtime.serve.shelf import Shelf
from support.server import CHAT, LONG, ONE, question

LARGE = 64 << 20  # more than the buffers between two sockets


async def endless(scope: Any, receive: Any, send: Any) -> None:
    """An application whose answer is long."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(LARGE >> 16):
        await send({"type": "http.response.body", "body": b"x" * (1 << 16), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: lo", b"GET / HTTP/1.1\r\n\r\n"])
def test_connections_that_stand_still_are_closed(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing said, a head without end, and an answer that nobody reads."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(connections, "STALLED_SECONDS", 0.1)
    monkeypatch.setattr(connections, "LOOKED_SECONDS", 0.02)
    sent = sent.replace(b"\r\n\r\n", b"\r\nHost: localhost\r\n\r\n")

    async def connected() -> None:
        config, state = Config(endless, log_config=None, lifespan="off", ws="none"), ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(sent)
        while not state.connections:
            await asyncio.sleep(0.01)
        while state.connections or state.tasks:  # what is not closed is waited for without end
            await asyncio.sleep(0.01)
        with pytest.raises(OSError):
            while await reader.read(1 << 20):
                pass
            raise OSError("closed")
        writer.close()
        server.close()

    asyncio.run(connected())


def test_bytes_behind_a_request_do_not_hide_that_a_client_closes() -> None:
    """Of the next request so much is read ahead as may be, and answered in its turn."""
    heard: list[str] = []
    begun, closed = asyncio.Event(), asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        if scope["path"] == "/quick":
            await asyncio.sleep(0.01)  # until the next one is there too
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        begun.set()
        heard.append((await receive())["type"])
        closed.set()

    async def connected() -> None:
        config, state = Config(waits, log_config=None, lifespan="off", ws="none"), ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
        for behind, closes in ((b"P", True), (b"x" * (1 << 18), False)):
            begun.clear()
            closed.clear()
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for path in (b"quick", b"slow"):
                writer.write(b"POST /%b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx" % path)
            assert b"204" in await reader.readline()
            await begun.wait()
            writer.write(behind)
            if closes:
                await writer.drain()
                writer.close()
            await closed.wait()
            writer.close()
        server.close()

    asyncio.run(connected())
    assert heard == ["http.disconnect"] * 2


def test_one_connection_too_many_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "most", 1)

    async def connected() -> None:
        config, state = Config(endless, log_config=None, lifespan="off", ws="none"), ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        _, first = await asyncio.open_connection(*address)
        while not state.connections:
            await asyncio.sleep(0.01)
        second, writer = await asyncio.open_connection(*address)
        with suppress(OSError):  # a reset
            assert await second.read() == b""
        while len(state.connections) > 1:
            await asyncio.sleep(0.01)
        for one in (first, writer):
            one.close()
        server.close()

    asyncio.run(connected())


Read = Callable[[], Awaitable[dict[str, Any]]]


def parts(*sent: bytes | None) -> Read:
    """What an ASGI server hands on; None is a part that never comes."""
    waiting = list(sent)

    async def receive() -> dict[str, Any]:
        part = waiting.pop(0) if waiting else None
        if part is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    return receive


async def gone() -> dict[str, Any]:
    return {"type": "http.disconnect"}


def test_bodies_are_limited_one_by_one_and_together() -> None:
    async def read() -> None:
        held = Held(Limits(body=10, bodies=16, body_seconds=0.05))
        with held.body() as first, held.body() as second:
            await first.read({}, parts(b"12345", b"67890"))
            assert first.data == b"1234567890" and held.bytes == 10
            for status, receive in (
                (413, parts(b"123456", b"78901")),
                (429, parts(b"1234567")),
                (408, parts(b"12345", None)),
            ):
                with pytest.raises(ApiError) as refused, held.body() as body:
                    await body.read({}, receive)
                assert refused.value.status == status and held.bytes == 10
            with pytest.raises(ApiError) as refused, held.body() as body:
                await body.read({"content-length": "9" * 30}, parts(b"1"))
            assert refused.value.status == 413
            with pytest.raises(GoneError):
                await second.read({}, gone)
            first.drop()
            first.drop()
            assert held.bytes == 0

    asyncio.run(read())


def test_an_answer_that_takes_too_long_is_cut(tiny_package: Path) -> None:
    """One that has begun ends with what there is, one that has not is told so."""

    async def asked() -> None:
        for seconds, status in ((0.5, 200), (0.0, 504)):
            limits = Limits(seconds=seconds, new_tokens=1500)
            shelf = Shelf({"model": tiny_package}, limits, backend="ort-cpu")
            app = App(shelf, limits, Guard((), None), None)
            sent: list[dict[str, Any]] = []

            async def send(message: Any, sent: list[dict[str, Any]] = sent) -> None:
                sent.append(message)

            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers}
            await app(scope, parts(json.dumps(LONG).encode()), send)
            found = json.loads(sent[1]["body"])
            if status == 504 or sent[0]["status"] == 504:  # a slow machine may not come to a token
                assert (sent[0]["status"], found["error"]["code"]) == (504, "timeout")
            else:
                (choice,) = found["choices"]
                assert (choice["finish_reason"], choice["avl"]["cut"]) == ("length", "time")
                assert 0 < found["usage"]["completion_tokens"] < LONG["max_tokens"]
            assert app.answering.admission.running == 0
            await app.close()

    asyncio.run(asked())


def test_placements_are_limited_before_they_are_made(
    tiny_package: Path, tiny: LVLM, decoders: Decoders
) -> None:
    """By what they take, all choices together, if an answer has all the tokens it may have."""
    shelf = Shelf({"m": tiny_package}, Limits(placements=1), backend="ort-cpu")
    fields = {"model": "m", "messages": question(ONE), "max_tokens": 8, "placements": True}
    for policy in ("dense", "avl:refresh=1", "avl:refresh=3"):
        asked = chat_request(fields | {"policy": policy}, Limits())
        twice = chat_request(fields | {"policy": policy, "n": 2}, Limits())
        made = tiny.generate(
            ONE.prompt, [ONE.image], policy=policy, max_new_tokens=8, return_placements=True
        )
        taken = sum(one.core.nbytes + one.parked.nbytes for one in made.placements)
        with pytest.raises(ApiError, match="expected at most 1 bytes of them") as refused:
            shelf.loaded[0].prepare(asked, Pictures(Limits(), decoders))
        found = int(re.findall("found ([0-9]+)", str(refused.value))[0])
        assert refused.value.param == "placements" and taken <= found
        if made.finish_reason == "length":
            assert found <= 2 * taken
        served = Served("m", shelf.loaded[0].model, Limits(placements=found))
        assert len(served.prepare(asked, Pictures(Limits(), decoders))) == 1
        with pytest.raises(ApiError, match=f"found {2 * found} "):
            served.prepare(twice, Pictures(Limits(), decoders))
    asyncio.run(shelf.close())


def test_a_client_that_reads_too_slowly_is_given_up() -> None:
    async def told() -> None:
        async def at_once() -> None:
            pass

        past = asyncio.get_running_loop().time() - SENDING
        await _sent(at_once(), past)
        with pytest.raises(GoneError):
            await _sent(asyncio.sleep(3600), past)

    asyncio.run(told())

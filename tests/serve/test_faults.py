"""Clients that go away, send too much, or too little; and a server that is told to stop."""

from __future__ import annotations

import json
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from support.server import (
    CHAT,
    KEY,
    LONG,
    MODEL,
    TWO,
    Running,
    head,
    picture,
    question,
    said,
    started,
)

QUICK = {"model": MODEL, "messages": question(TWO), "max_tokens": 2}
STREAMED = LONG | {"stream": True}


def answered(server: Running) -> None:
    """The server is idle again, and answers."""
    server.until(avl_running=0, avl_places_taken=0, avl_waiting=0, avl_kv_bytes_reserved=0)
    assert server.ask(QUICK)[0] == 200


def test_clients_that_go_away(server: Running) -> None:
    """In the head, in the body, before the first token, while it decodes, and while it streams."""
    body = json.dumps(LONG).encode()
    for sent in (head(body)[:40], head(body)[:-10]):
        with server.connect() as connection:
            connection.sendall(sent)
    with server.connect() as connection:
        connection.sendall(head(body))
    with server.connect() as connection:
        connection.sendall(head(body))
        server.until(avl_running=1)
    with server.connect() as connection:
        connection.sendall(head(json.dumps(STREAMED).encode()))
        while b"data: " not in connection.recv(1 << 16):
            pass
        assert server.metric("avl_running") == 1
    answered(server)


def test_a_client_that_waits_goes_away_too(server: Running) -> None:
    """Two run, one waits, the next is sent away; who leaves the queue makes room in it."""
    running = [server.connect() for _ in range(2)]
    try:
        for connection in running:
            connection.sendall(head(json.dumps(LONG).encode()))
        server.until(avl_running=2)
        for _ in range(2):
            with server.connect() as waiting:
                waiting.sendall(head(json.dumps(QUICK).encode()))
                server.until(avl_waiting=1)
                status, headers, said = server.ask(QUICK)
                assert (status, headers["Retry-After"]) == (429, "5")
                assert json.loads(said)["error"]["type"] == "rate_limit_error"
            server.until(avl_waiting=0)
    finally:
        for connection in running:
            connection.close()
    answered(server)


def test_bodies_that_are_too_large(server: Running) -> None:
    """By their length, and in chunks that do not tell it; both are answered, not cut off."""
    large = json.dumps({"model": "x" * 1_500_000}).encode()
    status, _, said = server.ask(large)
    assert status == 413 and json.loads(said)["error"]["code"] == "request_too_large"
    with server.connect() as connection:
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        start = head(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        connection.sendall(start + chunk * 20 + b"0\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
    answered(server)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"[" * 10_000, "nested too deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested too deep"),
        (b"[" * 300_000, "brackets"),
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"[1]", "expected a JSON object"),
        (b'{"n": NaN}', "found NaN"),
        (b'{"n": 1, "n": 2}', "'n' twice"),
        (b'{"n": ' + b"9" * 6000 + b"}", "expected JSON"),
    ],
)
def test_bodies_that_are_none(server: Running, sent: bytes, told: str) -> None:
    status, _, said = server.ask(sent)
    error = json.loads(said)["error"]
    assert status == 400 and told in error["message"], error
    assert error["type"] == "invalid_request_error"


def test_requests_that_are_none(server: Running) -> None:
    """Other paths, methods, content types; each is told what was expected."""
    for method, path, status in (
        ("GET", "/v1/none", 404),
        ("GET", "/v1/models/none", 404),
        ("GET", CHAT, 405),
        ("POST", "/health", 405),
    ):
        found, _, said = server.send(method, path)
        message = json.loads(said)["error"]["message"]
        assert found == status, said
        assert all(part in message for part in ("expected", "found", "; ")), message
    assert server.ask(QUICK, Content_Type="text/plain")[0] == 415
    assert server.ask(QUICK, Content_Encoding="gzip")[0] == 415
    for key in ("", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xff"):
        assert server.ask(QUICK, Authorization=key)[0] == 401
    assert server.send("GET", "/metrics", Authorization="Bearer no")[0] == 401
    assert server.send("GET", "/health", Authorization="")[0] == 200
    assert server.send("GET", "/ready", Authorization="")[0] == 200
    assert server.send("HEAD", "/v1/models")[::2] == (200, b"")


def test_a_signal_under_load(tiny_package: Path) -> None:
    """What runs is cut and told so, what waits is sent away, and the process ends well.

    This server has no keys, and so minds by what name it is called.
    """
    options = "--backend ort-cpu --running 2 --queue 4 --grace 0 --quiet"
    with started(tiny_package, *options.split()) as server:
        for name in ("localhost", "127.0.0.1:80", "[::1]:9"):
            assert server.send("GET", "/v1/models", Host=name)[0] == 200
        for name in ("evil.example", "localhost.evil.example", "127.0.0.2", ""):
            assert server.send("GET", "/v1/models", Host=name)[0] == 403
            assert (
                server.send("GET", "/", Host=name)[0]
                == server.send("GET", "/page/main.js", Host=name)[0]
                == 403
            )
        found: list[Any] = []

        def ask() -> None:
            found.append(server.ask(LONG))

        stream = server.connect()
        stream.sendall(head(json.dumps(STREAMED).encode()))
        told = b""
        while b"data: " not in told:
            told += stream.recv(1 << 16)
        asking = [threading.Thread(target=ask) for _ in range(2)]
        for thread in asking:
            thread.start()
        server.until(avl_running=2, avl_waiting=1)
        server.process.send_signal(signal.SIGTERM)
        while part := stream.recv(1 << 16):
            told += part
        stream.close()
        for thread in asking:
            thread.join()
        assert server.process.wait(60) == 0
        assert b"data: [DONE]\n\n" in told
        assert told.count(b'"finish_reason":"length"') == told.count(b'"cut":"shutdown"') == 1
        assert sorted(status for status, *_ in found) == [200, 503]
        (cut,) = [json.loads(said) for status, _, said in found if status == 200]
        assert cut["choices"][0]["avl"]["cut"] == "shutdown"
        assert cut["usage"]["completion_tokens"] < LONG["max_tokens"]
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", server.port), timeout=10)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process")
def test_a_full_disk_of_the_cache_and_another_server(tiny_package: Path, tmp_path: Path) -> None:
    """Answers are the same with rows on disk, without room for them, and with those of another."""
    options = f"--backend ort-cpu --quiet --cache-dir {tmp_path} --cache-limit 100000000".split()
    pictures = [picture(TWO.image)] * 2  # so that a run of the prompt is whole
    asked = QUICK | {"messages": [{"role": "user", "content": [*pictures, said("Read it.")]}]}

    def told(server: Running) -> tuple[str, int]:
        status, _, data = server.ask(asked)
        assert status == 200, data
        found = json.loads(data)
        known = found["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found["choices"][0]["message"]["content"], known

    def limited(server: Running, size: int) -> None:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    with started(tiny_package, *options) as server:
        limited(server, 4096)
        text, known = told(server)
        assert known == 0 and told(server) == (text, 256)
        while not any("cannot be written: File too large" in line for line in server.lines):
            time.sleep(0.01)  # which the thread that writes has yet to find
        assert not list(tmp_path.glob("*/*.safetensors"))
        limited(server, resource.RLIM_INFINITY)
        assert told(server) == (text, 256)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    assert sum("cannot be" in line for line in server.lines) == 1, server.lines
    assert len(list(tmp_path.glob("*/*"))) == 1
    with started(tiny_package, *options) as server:
        assert told(server) == (text, 256)

"""One HTTP request and its answer."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.http.bodies import GoneError, Receive

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Found = TypeVar("Found")


class Exchange:
    """A request, and how it is answered.

    Attributes:
        id: by which the log knows it; the client is told it.
        method, path: of the request.
        headers: by name in lower case; of several the last.
        client: whose requests share their turns: all of a key, or of nobody.
        status: of the answer, None before it began.
        notes: what the log shall say of it.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self.receive, self._send = receive, send
        self.id = f"req-{secrets.token_hex(8)}"
        self.method, self.path = str(scope["method"]), str(scope["path"])
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        self.client = b""
        self.status: int | None = None
        self.notes: dict[str, Any] = {}
        self.begun = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Note for how long something is waited for, beside what was waited for before."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - begun) * 1e3
            self.notes["queue_ms"] = round(self.notes.get("queue_ms", 0.0) + spent, 1)

    async def answer(
        self, body: bytes, kind: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with a whole body of a content type."""
        extra = {"Content-Length": str(len(body)), **(headers or {})}
        await self._start(status, kind, extra)
        await self._send({"type": "http.response.body", "body": body})

    async def whole(
        self, found: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with a JSON object."""
        await self.answer(_json(found), "application/json", status, headers)

    async def error(self, error: ApiError) -> None:
        """Answer with an error object, as an event where a stream has begun."""
        self.notes["error"] = error.code or error.status
        if self.status is None:
            await self.whole(error.body, error.status, error.headers)
        else:
            await self.event(error.body)
            await self.end()

    async def begin_events(self) -> None:
        """Begin a stream of events."""
        # A proxy that gathers an answer before it passes it on is asked not to.
        quick = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        await self._start(200, "text/event-stream; charset=utf-8", quick)

    async def event(self, found: object, name: str = "") -> None:
        """Send one event."""
        front = f"event: {name}\n".encode() if name else b""
        await self._write(front + b"data: " + _json(found) + b"\n\n")

    async def end(self, last: bytes = b"") -> None:
        """End a stream; clients lose a last event without an empty line behind it."""
        if last:
            await self._write(b"data: " + last + b"\n\n")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def unless_gone(self, work: Coroutine[Any, Any, Found]) -> Found:
        """Do work, and give it up when the client closes its connection.

        Raises:
            GoneError: it did.
        """
        task = asyncio.create_task(work)
        gone = asyncio.create_task(self._gone())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise GoneError
            return task.result()
        finally:
            gone.cancel()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(task, gone, return_exceptions=True)

    async def _gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def _start(self, status: int, kind: str, headers: Mapping[str, str]) -> None:
        self.status = status
        shown = {
            "Content-Type": kind,
            "X-Request-Id": self.id,
            "X-Content-Type-Options": "nosniff",
            **headers,
        }
        pairs = [(name.lower().encode(), value.encode()) for name, value in shown.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})


def _json(found: object) -> bytes:
    return json.dumps(found, allow_nan=False, separators=(",", ":")).encode()

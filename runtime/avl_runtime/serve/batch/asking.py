"""The server's own application, asked without a connection: its answers are those of avl-serve."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avl_runtime.serve.app import App
from avl_runtime.serve.http.bodies import Message
from avl_runtime.serve.http.guard import Guard
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.shelf import Shelf

HEADERS = [(b"content-type", b"application/json")]


@dataclass(frozen=True, slots=True)
class Told:
    """An answer.

    Attributes:
        id: by which the server's messages call the request.
        body: JSON.
    """

    status: int
    id: str
    body: bytes


class Asking:
    """Asks an application."""

    def __init__(self, app: App, shelf: Shelf) -> None:
        self._app, self._shelf = app, shelf

    @property
    def alive(self) -> bool:
        """Whether the model can answer."""
        return self._shelf.alive

    async def __call__(self, url: str, body: bytes) -> Told:
        """Post a body."""
        status, request, parts = 0, "", []
        waiting = [{"type": "http.request", "body": body}]

        async def receive() -> Message:
            if waiting:
                return waiting.pop()
            await asyncio.Event().wait()  # this client does not leave
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal status, request
            if message["type"] == "http.response.start":
                status = message["status"]
                request = dict(message["headers"])[b"x-request-id"].decode()
            else:
                parts.append(message["body"])

        scope = {"type": "http", "method": "POST", "path": url, "headers": HEADERS}
        await self._app(scope, receive, send)
        return Told(status, request, b"".join(parts))


@asynccontextmanager
async def asking(
    name: str,
    package: Path,
    limits: Limits,
    hosts: Collection[str],
    loading: Mapping[str, Any],
    *,
    quiet: bool = False,
) -> AsyncIterator[Asking]:
    """A package, loaded to be asked.

    Args:
        hosts: that pictures may be fetched from.
        loading: as for `LVLM.load`.
        quiet: tell nothing on stderr of what is loaded, and where.

    Raises:
        AvlError: it cannot be loaded.
    """
    with redirect_stderr(io.StringIO()) if quiet else nullcontext():
        shelf = Shelf({name: package}, limits, **loading)
    app = App(shelf, limits, Guard((), None), None, hosts)
    try:
        yield Asking(app, shelf)
    finally:
        await app.close()

"""A server from its first connection to its last."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final

import uvicorn

from avl_plugins.errors import AvlError, shown
from avl_runtime.serve.app import App
from avl_runtime.serve.http.connections import Connection
from avl_runtime.serve.limits import Limits

BACKLOG: Final = 256
TOLD_SECONDS: Final = 10.0  # for clients to read how their answers were cut
HEAD_BYTES: Final = 32 << 10  # of a request's line and headers
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class AddressError(AvlError):
    """A server cannot listen where it was told to."""


class _Server(uvicorn.Server):
    """uvicorn's, which on a signal lets answers come to their end for a while, then cuts them."""

    def __init__(self, config: uvicorn.Config, app: App, grace: float) -> None:
        super().__init__(config)
        self._app, self._grace = app, grace
        self._loop: asyncio.AbstractEventLoop | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, and at the second signal cut what still runs."""
        again, self.should_exit = self.should_exit, True
        if again and self._loop is not None:
            self._loop.call_soon_threadsafe(self._app.answering.cut)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and wait for the answers of those there are."""
        self._loop = asyncio.get_running_loop()
        self._app.stopping = True
        cut = self._loop.call_later(self._grace, self._app.answering.cut)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals; unlike uvicorn's, they are not sent again when all is done."""
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        AddressError: the address is none of this machine, or is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AddressError(
            f"expected an address to listen on, found {shown(host)}:{port}: {shown(reason)}; "
            "choose another --host or --port"
        ) from None


def serve(
    app: App, names: Sequence[str], listener: socket.socket, limits: Limits, grace: float
) -> None:
    """Answer until a signal ends it.

    Args:
        names: of models.
        grace: seconds for answers that run when the signal comes.
    """
    Connection.most = limits.connections
    config = uvicorn.Config(
        app,
        http=Connection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(grace + TOLD_SECONDS),
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    asyncio.run(_served(_Server(config, app, grace), names, app, listener))


async def _served(server: _Server, names: Sequence[str], app: App, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    print(f"avl-serve: http://{name}:{port}/v1 serves {', '.join(names)}", file=sys.stderr)
    print(f"avl-serve: a page to ask in: http://{name}:{port}/", file=sys.stderr, flush=True)
    try:
        await server.serve(sockets=[listener])
    finally:
        await app.close()

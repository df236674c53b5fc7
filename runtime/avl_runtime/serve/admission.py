"""Who may run now, who waits, and who is sent away."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.http.bodies import RETRY


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A request that waits for so many places."""

    count: int
    let_in: asyncio.Future[None]


class Admission:
    """Places for sequences; clients that wait take turns, each with its requests in their order.

    So a client's first request waits for one request at most of each other client, however many
    they have sent. Where the queue is full the client with the most requests in it gives way to one
    that has less: its last one is sent away.

    Attributes:
        running: places that are taken.
        stopped: whether nobody is let in any more.
    """

    def __init__(self, places: int, queue: int) -> None:
        self._free = self._places = places
        self._queue = queue
        self._waiting: dict[bytes, deque[_Entry]] = {}  # by client, in the order of their turns
        self.stopped = False

    @property
    def running(self) -> int:
        """Places that are taken."""
        return self._places - self._free

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def places(self, count: int, client: bytes = b"") -> AsyncIterator[None]:
        """Have so many places, waiting for them.

        Args:
            client: who asks; all that say the same are one.

        Raises:
            ApiError: too many wait already, or the server stops.
            ValueError: there are not so many.
        """
        await self._enter(count, client)
        try:
            yield
        finally:
            self._free += count
            self._let_in()

    def stop(self) -> None:
        """Send those away who wait, and who come."""
        self.stopped = True
        entries = [entry for each in self._waiting.values() for entry in each]
        self._waiting.clear()
        for entry in entries:
            if not entry.let_in.done():
                entry.let_in.set_exception(stopping())

    async def _enter(self, count: int, client: bytes) -> None:
        if count > self._places:
            raise ValueError(f"expected at most {self._places} places, found {count}")
        if self.stopped:
            raise stopping()
        if not self._waiting and count <= self._free:
            self._free -= count
            return
        if self.waiting >= self._queue:
            self._make_way(client)
        entry = _Entry(count, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(client, deque()).append(entry)
        try:
            await entry.let_in
        except asyncio.CancelledError:
            future = entry.let_in
            if future.done() and not future.cancelled() and future.exception() is None:
                self._free += count  # it was let in just before
            else:
                self._drop(client, entry)
            self._let_in()
            raise

    def _make_way(self, client: bytes) -> None:
        """Send somebody else away, who has more requests in the queue.

        Raises:
            ApiError: nobody has.
        """
        mine = len(self._waiting.get(client, ()))
        most = max(self._waiting.items(), key=lambda one: len(one[1]), default=None)
        if most is None or len(most[1]) <= mine + 1:
            raise self._busy()
        last = most[1].pop()
        if not last.let_in.done():
            last.let_in.set_exception(self._busy())

    def _busy(self) -> ApiError:
        return ApiError(
            429,
            f"expected fewer than {self._queue} requests that wait, found as many; try again later",
            code="server_busy",
            headers=RETRY,
        )

    def _drop(self, client: bytes, entry: _Entry) -> None:
        """Have one that waits, if it still does, wait no more."""
        mine = self._waiting.get(client, deque())
        if entry in mine:
            mine.remove(entry)
            if not mine:
                del self._waiting[client]

    def _let_in(self) -> None:
        while self._waiting:
            client = next(iter(self._waiting))
            if self._waiting[client][0].count > self._free:
                return
            mine = self._waiting.pop(client)
            entry = mine.popleft()
            if mine:
                self._waiting[client] = mine  # behind the others
            if not entry.let_in.done():
                self._free -= entry.count
                entry.let_in.set_result(None)


def stopping() -> ApiError:
    """The server is about to end."""
    return ApiError(
        503,
        "expected a server that runs, found one that stops; try again later",
        code="server_stopping",
        headers=RETRY,
    )

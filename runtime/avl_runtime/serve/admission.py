"""Who may run now, who waits, and who is sent away."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.http.bodies import RETRY


class Admission:
    """Places for sequences; requests wait for theirs in the order in which they came.

    Attributes:
        running: places that are taken.
        stopped: whether nobody is let in any more.
    """

    def __init__(self, places: int, queue: int) -> None:
        self._free = self._places = places
        self._queue = queue
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.stopped = False

    @property
    def running(self) -> int:
        """Places that are taken."""
        return self._places - self._free

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def places(self, count: int) -> AsyncIterator[None]:
        """Have so many places, waiting for them.

        Raises:
            ApiError: too many wait already, or the server stops.
            ValueError: there are not so many.
        """
        await self._enter(count)
        try:
            yield
        finally:
            self._free += count
            self._let_in()

    def stop(self) -> None:
        """Send those away who wait, and who come."""
        self.stopped = True
        while self._waiting:
            _, entry = self._waiting.popleft()
            if not entry.done():
                entry.set_exception(stopping())

    async def _enter(self, count: int) -> None:
        if count > self._places:
            raise ValueError(f"expected at most {self._places} places, found {count}")
        if self.stopped:
            raise stopping()
        if not self._waiting and count <= self._free:
            self._free -= count
            return
        if len(self._waiting) >= self._queue:
            raise ApiError(
                429,
                f"expected fewer than {self._queue} requests that wait, found as many; try again "
                "later",
                code="server_busy",
                headers=RETRY,
            )
        entry: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, entry))
        try:
            await entry
        except asyncio.CancelledError:
            if entry.done() and not entry.cancelled() and entry.exception() is None:
                self._free += count  # it was let in just before
            else:
                self._waiting = deque(one for one in self._waiting if one[1] is not entry)
            self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            count, entry = self._waiting.popleft()
            if not entry.done():
                self._free -= count
                entry.set_result(None)


def stopping() -> ApiError:
    """The server is about to end."""
    return ApiError(
        503,
        "expected a server that runs, found one that stops; try again later",
        code="server_stopping",
        headers=RETRY,
    )

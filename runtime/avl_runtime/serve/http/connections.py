"""Connections that say nothing, or do not read what they asked for, are closed."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS: Final = 20.0  # for the head of a request to come, from the last answer on
STALLED_SECONDS: Final = 30.0  # that a client may leave all that was written unread
MOST_AHEAD: Final = 1 << 16  # bytes behind a request that is being answered
LOOKED_SECONDS: Final = 2.0  # between two looks at a connection


class Connection(H11Protocol):
    """uvicorn's protocol of h11, with what it lacks: time-outs for heads and for readers.

    Attributes:
        most: connections at one time; those that come on top are closed at once.
    """

    most = 512

    def connection_made(self, transport: Any) -> None:
        """Begin to watch a connection."""
        super().connection_made(transport)
        self._quiet_since: float | None = time.monotonic()
        self._unread, self._unread_since = 0, time.monotonic()
        self._look: asyncio.TimerHandle | None = None
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching it."""
        super().connection_lost(exc)
        if self._look is not None:
            self._look.cancel()

    def handle_events(self) -> None:
        """Take what came; reading goes on behind a whole request.

        uvicorn stops reading there until the answer's end, and so would not hear that the client
        closes.
        """
        super().handle_events()
        ahead = len(self.conn.trailing_data[0]) if self.conn.their_state is h11.DONE else 0
        if ahead > MOST_AHEAD:
            self.transport.abort()
        elif ahead:
            self.flow.resume_reading()

    def _watch(self) -> None:
        now = time.monotonic()
        if self.cycle is not None and not self.cycle.response_complete:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now
        unread = self.transport.get_write_buffer_size()
        if not unread or unread != self._unread:
            self._unread, self._unread_since = unread, now
        quiet = self._quiet_since is not None and now - self._quiet_since > HEAD_SECONDS
        if (quiet and not unread) or (now - self._unread_since > STALLED_SECONDS and unread):
            self.transport.abort()
            return
        self._look = self.loop.call_later(LOOKED_SECONDS, self._watch)

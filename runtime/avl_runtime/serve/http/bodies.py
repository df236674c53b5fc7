"""Bodies of requests: read under limits of size, time and memory, and parsed under more."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Final, NoReturn

from avl_plugins.errors import quoted
from avl_runtime.serve.errors import ApiError, refused
from avl_runtime.serve.limits import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
RETRY: Final = {"Retry-After": "5"}
CLOSE: Final = {"Connection": "close"}
DIGITS: Final = 18  # no length has more
# Of a body that is refused so much more is read and dropped: a client that still writes when its
# connection is closed would see a broken connection in place of the answer.
DROPPED_BYTES: Final = 64 << 20
DROPPED_SECONDS: Final = 5.0
MARKS: Final = (b"[", b"{", b",", b":")


class GoneError(Exception):
    """The client has closed its connection."""


class Held:
    """Counts the bytes of all bodies that are held.

    Attributes:
        bytes: of them.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0

    @contextmanager
    def body(self) -> Iterator[Body]:
        """A body to be read, whose room is given back at the end at the latest."""
        body = Body(self)
        try:
            yield body
        finally:
            body.drop()


class Body:
    """The body of one request.

    Attributes:
        data: what was read, until it is dropped.
    """

    def __init__(self, held: Held) -> None:
        self._held, self._bytes = held, 0
        self.data = b""

    async def read(self, headers: Mapping[str, str], receive: Receive) -> None:
        """Read all of it.

        Raises:
            ApiError: it is too large, comes too slowly, or there is no room for it now.
            GoneError: the client went away before its end.
        """
        seconds = self._held.limits.body_seconds
        try:
            async with asyncio.timeout(seconds):
                self.data = b"".join(await self._parts(headers, receive))
        except TimeoutError:
            raise ApiError(
                408,
                f"expected a whole body within {seconds:g} s, found a part of it; send it faster",
                headers=CLOSE,
            ) from None

    def drop(self) -> None:
        """Give back its room."""
        self._held.bytes -= self._bytes
        self._bytes, self.data = 0, b""

    async def _parts(self, headers: Mapping[str, str], receive: Receive) -> list[bytes]:
        held, most = self._held, self._held.limits.body
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > DIGITS or int(length) > most):
            raise await _refused(receive, _too_large(most), True)
        parts, more = [], True
        while more:
            part, more = await _part(receive)
            if self._bytes + len(part) > most:
                raise await _refused(receive, _too_large(most), more)
            if held.bytes + len(part) > held.limits.bodies:
                raise await _refused(receive, _no_room(), more)
            held.bytes += len(part)
            self._bytes += len(part)
            parts.append(part)
        return parts


def _too_large(most: int) -> ApiError:
    return ApiError(
        413,
        f"expected a body of at most {most} bytes, found more; send smaller or fewer pictures",
        code="request_too_large",
        headers=CLOSE,
    )


def _no_room() -> ApiError:
    return ApiError(
        429,
        "expected room for the body, found it taken by those of other requests; try again later",
        code="server_busy",
        headers=RETRY | CLOSE,
    )


async def _part(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] != "http.request":
        raise GoneError
    return bytes(message.get("body", b"")), bool(message.get("more_body", False))


async def _refused(receive: Receive, error: ApiError, more: bool) -> ApiError:
    """The error, once what is still to come, if there is more, has been read a while and dropped.

    Raises:
        GoneError: the client went away before its end.
    """
    left = DROPPED_BYTES
    try:
        async with asyncio.timeout(DROPPED_SECONDS):
            while more and left > 0:
                part, more = await _part(receive)
                left -= len(part)
    except TimeoutError:
        pass
    return error


def parsed(body: bytes, limits: Limits) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        ApiError: it is none, has a name twice, numbers that JSON has not, or is nested too deep.
    """
    marks = sum(body.count(mark) for mark in MARKS)
    if marks > limits.marks:
        raise refused(
            f"expected a body of at most {limits.marks} brackets, commas and colons, found "
            f"{marks}; send less",
        )
    try:
        text = body.decode("utf-8")
        found = json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
    except RecursionError:
        raise refused("expected JSON, found it nested too deep; send it flatter") from None
    except UnicodeDecodeError:
        raise refused("expected JSON in UTF-8, found other bytes; encode it so") from None
    except ValueError as error:
        if isinstance(error, _JsonError):
            raise refused(str(error)) from None
        where = f"at character {error.pos}" if isinstance(error, json.JSONDecodeError) else "inside"
        raise refused(f"expected JSON, found a mistake {where}; mend it") from None
    if not isinstance(found, dict):
        raise refused(f"expected a JSON object, found {type(found).__name__}; send an object")
    return found


class _JsonError(ValueError):
    pass


def _no_number(name: str) -> NoReturn:
    raise _JsonError(f"expected numbers of JSON, found {name}; send a finite one")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counted.items() if count > 1)
        raise _JsonError(f"expected each name once in an object, found {quoted(twice)} twice")
    return found

"""From questions to answers: some requests at one time, until each has an answer."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from typing import Protocol

from avl_plugins.errors import AvlError
from avl_runtime.serve.batch.answers import OK, Row, row_of
from avl_runtime.serve.batch.asking import Told
from avl_runtime.serve.batch.lines import Asked, LineError, asked_of, id_of, loosely
from avl_runtime.serve.batch.pictures import Folder
from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.http.bodies import parsed
from avl_runtime.serve.limits import Limits

Take = Callable[[int, Row], None]


class BatchError(AvlError):
    """The model cannot answer any more."""


class Asks(Protocol):
    """Who answers."""

    @property
    def alive(self) -> bool: ...

    def __call__(self, url: str, body: bytes) -> Awaitable[Told]: ...


@dataclass(frozen=True, slots=True)
class Ready:
    """A request as it is sent.

    Attributes:
        asked: by the line.
        body: what is sent.
    """

    asked: Asked
    body: bytes


class Reader:
    """Makes requests of lines, with the pictures that they name."""

    def __init__(self, model: str, folder: Folder, limits: Limits) -> None:
        """
        Args:
            model: what requests that name none ask.
        """
        self._model, self._folder, self._limits = model, folder, limits

    def ready(self, line: bytes | None, number: int) -> tuple[str, Ready | Told | LineError]:
        """What a request is called, and itself or why it cannot be asked.

        Args:
            line: None for one that is too long.
            number: of the line.
        """
        if line is None:
            return id_of({}, number), LineError(
                "expected a line whose body is one that can be asked, found it longer than "
                "--max-body; send smaller or fewer pictures"
            )
        try:
            found = parsed(line, self._limits)
        except ApiError as error:
            return id_of(loosely(line), number), LineError(str(error))
        name = id_of(found, number)
        try:
            asked = asked_of(found, self._model)
            self._folder.put_into(asked.body)
        except LineError as error:
            return name, error
        except ApiError as error:
            body = _json(asked.in_its_words(error.body))
            return name, Told(error.status, f"req-{secrets.token_hex(8)}", body)
        return name, Ready(asked, _json(asked.body))


class Lines(Protocol):
    """Where lines come from."""

    def line(self, place: int) -> bytes | None:
        """A line; None if it is too long."""

    def number(self, place: int) -> int:
        """Which one it is in its file."""


class Asker:
    """Answers requests of a file by their places."""

    def __init__(self, questions: Lines, reader: Reader, ask: Asks) -> None:
        self._questions, self._reader, self._ask = questions, reader, ask

    async def row(self, place: int) -> Row:
        """The answer of a request.

        Raises:
            AvlError: the questions have changed, or the model cannot answer any more.
        """
        name, found = await asyncio.to_thread(self._ready, place)
        if isinstance(found, Ready):
            found = await self._answer(found)
            if not self._ask.alive:
                raise BatchError(
                    "expected a model that answers, found that it stopped; its message is above, "
                    "go on with --resume"
                )
        return row_of(name, found)

    async def _answer(self, ready: Ready) -> Told:
        told = await self._ask(ready.asked.url, ready.body)
        if told.status == OK or ready.asked.shown is None:
            return told
        return replace(told, body=_json(ready.asked.in_its_words(json.loads(told.body))))

    def _ready(self, place: int) -> tuple[str, Ready | Told | LineError]:
        line = self._questions.line(place)
        return self._reader.ready(line, self._questions.number(place))


async def run(places: Collection[int], asker: Asker, take: Take, at_once: int) -> None:
    """Answer requests.

    Args:
        take: is given each answer when it has come.
        at_once: how many are under way at one time.

    Raises:
        AvlError: it cannot be gone on with.
    """
    left = iter(places)

    async def work() -> None:
        for place in left:
            take(place, await asker.row(place))

    workers = [asyncio.create_task(work()) for _ in range(min(at_once, len(places)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _json(found: object) -> bytes:
    return json.dumps(found, separators=(",", ":")).encode()

"""From questions to answers: some requests at one time, until each has an answer."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable
from typing import Protocol

from avl_plugins.errors import AvlError
from avl_runtime.serve.batch.answers import Answers
from avl_runtime.serve.batch.asking import Told
from avl_runtime.serve.batch.lines import Asked, LineError, asked_of, id_of, loosely
from avl_runtime.serve.batch.pictures import Folder
from avl_runtime.serve.batch.progress import Count
from avl_runtime.serve.batch.questions import Questions
from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.limits import Limits


class BatchError(AvlError):
    """The model cannot answer any more."""


class Asks(Protocol):
    """Who answers."""

    @property
    def alive(self) -> bool: ...

    def __call__(self, url: str, body: bytes) -> Awaitable[Told]: ...


class Reader:
    """Makes requests of lines, with the pictures that they name."""

    def __init__(self, model: str, folder: Folder, limits: Limits) -> None:
        """
        Args:
            model: what requests that name none ask.
        """
        self._model, self._folder, self._limits = model, folder, limits

    def ready(self, line: bytes | None, number: int) -> tuple[str, Asked | Told | LineError]:
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
        name = id_of(loosely(line), number)
        try:
            asked = asked_of(line, self._model, self._limits)
            self._folder.put_into(asked.body)
        except LineError as error:
            return name, error
        except ApiError as error:
            body = json.dumps(error.body).encode()
            return name, Told(error.status, f"req-{secrets.token_hex(8)}", body)
        return name, asked


async def run(
    questions: Questions, answers: Answers, reader: Reader, ask: Asks, count: Count, at_once: int
) -> None:
    """Ask all requests that have no answer.

    Args:
        at_once: how many are under way at one time.

    Raises:
        AvlError: it cannot be gone on with; what is answered is written.
    """
    left = (int(place) for place in questions.order if not answers.answered[place])

    async def work() -> None:
        for place in left:
            number = questions.number(place)
            line = await asyncio.to_thread(questions.line, place)
            name, found = await asyncio.to_thread(reader.ready, line, number)
            if isinstance(found, Asked):
                found = await _asked(ask, found)
            answers.add(place, name, found)
            count.add(found)

    workers = [asyncio.create_task(work()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _asked(ask: Asks, asked: Asked) -> Told:
    body = await asyncio.to_thread(_encoded, asked)
    told = await ask(asked.url, body)
    if not ask.alive:
        raise BatchError(
            "expected a model that answers, found that it stopped; its message is above, go on "
            "with --resume"
        )
    return told


def _encoded(asked: Asked) -> bytes:
    return json.dumps(asked.body, separators=(",", ":")).encode()

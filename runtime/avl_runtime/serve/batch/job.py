"""What a file of requests is answered with."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from avl_runtime.package.package import MANIFEST, load_package
from avl_runtime.serve.batch.answers import Answers, Row, Run
from avl_runtime.serve.batch.asking import asking
from avl_runtime.serve.batch.pictures import Folder
from avl_runtime.serve.batch.progress import Count
from avl_runtime.serve.batch.questions import STDIN, Questions
from avl_runtime.serve.batch.run import Asker, Reader, run
from avl_runtime.serve.limits import Limits

AHEAD: Final = 2  # requests that are read while all places are taken
APART: Final = ("threads", "prefix_cache")  # what answers do not depend on


@dataclass(frozen=True, slots=True)
class Job:
    """A package, and how it is asked.

    Attributes:
        name: of the model, as requests call it.
        package: its folder.
        loading: arguments of `LVLM.load`.
        limits: of a request, as the server has them.
        hosts: that pictures may be fetched from.
        images: the folder that paths of pictures lead into; None for that of the questions.
    """

    name: str
    package: Path
    loading: Mapping[str, Any]
    limits: Limits
    hosts: tuple[str, ...] = ()
    images: Path | None = None

    def answer(self, source: Path, out: Path, resume: bool, quiet: bool) -> Count:
        """Answer all requests of a file that have no answer yet.

        Args:
            source: JSONL; `-` is stdin.
            out: JSONL that answers are added to.
            resume: go on with a file that has answers.
            quiet: tell no progress.

        Raises:
            AvlError: it cannot be begun, or not be gone on with.
        """
        load_package(self.package)  # before a long file is read
        with (
            closing(Questions(source, self.limits.body)) as questions,
            closing(Answers(out, questions, self._run(questions), resume)) as answers,
            closing(Count(len(questions), answers.done, answers.failed, quiet)) as count,
        ):
            if answers.done < len(questions):
                asyncio.run(self._answer(questions, answers, count))
            return count

    async def _answer(self, questions: Questions, answers: Answers, count: Count) -> None:
        def take(place: int, row: Row) -> None:
            answers.add(place, row)
            count.add(row)

        async with asking(self.name, self.package, self.limits, self.hosts, self.loading) as ask:
            asker = Asker(questions, self.reader(questions.path), ask)
            left = (int(place) for place in questions.order if not answers.answered[place])
            await run(left, asker, take, together(self.limits.running))

    def reader(self, source: Path) -> Reader:
        """What makes requests of the lines of a file."""
        beside = Path() if source == STDIN else source.parent
        folder = Folder(self.images or beside, self.limits.body)
        return Reader(self.name, folder, self.limits)

    def _run(self, questions: Questions) -> Run:
        """What answers follow from."""
        manifest = (self.package / MANIFEST).read_bytes()
        options = {name: one for name, one in self.loading.items() if name not in APART}
        return {
            "questions": {"sha256": questions.sha256},
            "package": {"name": self.name, "sha256": hashlib.sha256(manifest).hexdigest()},
            "options": options | {"max-new-tokens": self.limits.new_tokens},
        }


def together(running: int) -> int:
    """Requests that are under way at one time."""
    return running + AHEAD

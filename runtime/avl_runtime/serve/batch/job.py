"""What a file of requests is answered with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from avl_runtime.package.package import MANIFEST
from avl_runtime.serve.batch.answers import Run
from avl_runtime.serve.batch.asking import Asking, asking
from avl_runtime.serve.batch.pictures import Folder
from avl_runtime.serve.batch.questions import STDIN, Questions
from avl_runtime.serve.batch.run import Reader
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
        quiet: whether loading tells nothing on stderr.
    """

    name: str
    package: Path
    loading: Mapping[str, Any]
    limits: Limits
    hosts: tuple[str, ...] = ()
    images: Path | None = None
    quiet: bool = False

    def asking(self) -> AbstractAsyncContextManager[Asking]:
        """The package, loaded to be asked."""
        return asking(
            self.name, self.package, self.limits, self.hosts, self.loading, quiet=self.quiet
        )

    def reader(self, source: Path) -> Reader:
        """What makes requests of the lines of a file."""
        beside = Path() if source == STDIN else source.parent
        folder = Folder(self.images or beside, self.limits.body)
        return Reader(self.name, folder, self.limits)

    def follows_from(self, questions: Questions) -> Run:
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

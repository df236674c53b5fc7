"""What a file of requests is answered with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
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
# What answers do not depend on: how much is done at one time, and how fast.
APART: Final = ("threads", "prefix_cache", "cache_dir", "cache_limit")
LOAD: Final = ("bodies", "running", "queue", "body_seconds", "connections")
OPTIONS: Final = {  # of limits, as the command line calls them
    "body": "max-body",
    "images": "max-images",
    "pixels": "max-pixels",
    "prompt": "max-prompt",
    "new_tokens": "max-new-tokens",
    "seconds": "timeout",
    "kv_bytes": "kv-bytes",
}


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
        return Reader(self.name, Folder(self._pictures(source), self.limits.body), self.limits)

    def follows_from(self, questions: Questions) -> Run:
        """What answers follow from."""
        manifest = (self.package / MANIFEST).read_bytes()
        return {
            "questions": {"sha256": questions.sha256},
            "package": {"name": self.name, "sha256": hashlib.sha256(manifest).hexdigest()},
            "pictures": {
                "images": str(self._pictures(questions.path).resolve()),
                "hosts": sorted(self.hosts),
            },
            "options": {name: one for name, one in self.loading.items() if name not in APART},
            "limits": {
                OPTIONS.get(name, name): None if one == math.inf else one
                for name, one in asdict(self.limits).items()
                if name not in LOAD
            },
        }

    def _pictures(self, source: Path) -> Path:
        """The folder that paths of pictures lead into, for the questions at `source`."""
        return self.images or (Path() if source == STDIN else source.parent)


def together(running: int) -> int:
    """Requests that are under way at one time."""
    return running + AHEAD

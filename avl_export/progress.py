"""Progress of an export on stderr."""

from __future__ import annotations

from avl_runtime.machine import progress


class Progress(progress.Progress):
    """A bar over `total` units of work."""

    def __init__(self, total: int) -> None:
        super().__init__("avl-export", total)

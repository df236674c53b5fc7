"""Folders in which something is made before it takes its place, and those that were left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PARTIAL = ".partial-"  # and the number of the process that writes there


def stage_of(place: Path) -> Path:
    """Where this process makes what shall lie at `place`: beside it, hidden."""
    return place.with_name(f".{place.name}{PARTIAL}{os.getpid()}")


def is_left_behind(path: Path, name: str | None = None) -> bool:
    """Whether `path` is a stage whose process was killed and could not remove it itself.

    Args:
        name: of what was to be made; any by default.
    """
    head, partial, number = path.name.rpartition(PARTIAL)
    ours = head.startswith(".") if name is None else head == f".{name}"
    return ours and partial != "" and number.isdigit() and not _runs(int(number))


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the stages in `folder` that were left behind; of `name`, or all of them."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_left_behind(path, name):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is someone else's
        return True
    return True

"""Files and folders that command lines name, looked at before anything is measured."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any


def in_folder(text: str) -> Path:
    """A file to write, in a folder that is there."""
    found = Path(text)
    if not found.parent.is_dir() or found.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder, found {text!r}")
    return found


def some_folder(text: str) -> Path:
    """A folder that can be written to, or a place where one can be made."""
    found = Path(text)
    there = next(place for place in (found, *found.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise argparse.ArgumentTypeError(f"expected a folder to write to, found {text!r}")
    return found


def records(path: Path) -> dict[str, Any]:
    """What a file of records holds, by name; nothing where it is not there yet.

    Raises:
        SystemExit: it holds something else.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SystemExit(f"--json {path}: expected records of this script, found something else")
    return found

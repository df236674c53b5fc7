"""Paths as terminals paste them when files are dragged in: quoted, escaped, or as addresses."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

WINDOWS = os.name == "nt"  # there a backslash parts folders and escapes nothing


def pasted_paths(text: str) -> list[str]:
    """The files and addresses that `text` names, as `load_image` and `load_video` take them.

    A text that names a file as it stands is that file, whatever its name looks like. Otherwise
    quotes and backslashes are read as a shell reads them, and several names stand for several
    files where each is a file that exists, or an address. All else is one name, spaces included,
    without quotes around it: `pasted_paths("my cat.png") == ["my cat.png"]`.
    """
    text = text.strip()
    if not text or _found(text):
        return [text] if text else []
    parts = _split(text)
    if len(parts) == 1 or (parts and all(_found(part) or _is_address(part) for part in parts)):
        return parts
    return [text]


def pasted_path(text: str) -> str:
    """The one file or address that `text` names; see `pasted_paths`."""
    parts = pasted_paths(text)
    return parts[0] if len(parts) == 1 else text.strip()


def _split(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    if WINDOWS:
        lexer.escape = ""
    try:
        return [part for part in lexer if part]
    except ValueError:  # a quote that nothing closes belongs to the name
        return []


def _found(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long for a name, or a home nobody has
        return False


def _is_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://", "file:", "data:"))

"""What Tab completes: names of commands, policies, and paths behind commands that take a file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from avl_plugins.policies import USUAL

PATHS = ("/image", "/video", "/save", "/load")
MOST = 200
_ODD = re.compile(r"([\\\s\"'])")


def candidates(line: str, commands: Sequence[str]) -> list[str]:
    """Whole lines that begin with `line`.

    Args:
        commands: the names of all commands, with their slash.
    """
    name, space, rest = line.partition(" ")
    if not space:
        return [one for one in commands if line.startswith("/") and one.startswith(line)]
    if name == "/policy":
        return [f"{name} {one}" for one in USUAL if one.startswith(rest)]
    if name not in PATHS:
        return []
    # Of several files behind one command the last is being typed.
    earlier, fragment = _last_word(rest) if name in ("/image", "/video") else ("", rest)
    return [f"{name} {earlier}{path}" for path in _paths(fragment)]


def last_part(line: str) -> str:
    """What is shown of a candidate: its last name."""
    body = line.rstrip("/").replace("\\ ", "\0")
    return re.split(r"[/ ]", body)[-1].replace("\0", " ") + ("/" if line.endswith("/") else "")


def _paths(fragment: str) -> list[str]:
    """Paths that begin with a fragment, quoted or escaped as it is."""
    quote = fragment[:1] if fragment[:1] in ("'", '"') else ""
    plain = fragment[1:] if quote else re.sub(r"\\(.)", r"\1", fragment)
    cut = plain.rfind("/") + 1
    typed, start = plain[:cut], plain[cut:]
    try:
        with os.scandir(Path(typed or ".").expanduser()) as found:
            entries = sorted(
                (entry.name, entry.is_dir())
                for entry in found
                if entry.name.startswith(start) and (start or not entry.name.startswith("."))
            )
    except (OSError, RuntimeError, ValueError):
        return []
    paths = [f"{typed}{name}{'/' if folder else ''}" for name, folder in entries[:MOST]]
    if quote:
        return [
            f"{quote}{path}{'' if path.endswith('/') else quote}"
            for path in paths
            if quote not in path
        ]
    return [_ODD.sub(r"\\\1", path) for path in paths]


def _last_word(text: str) -> tuple[str, str]:
    """The words in front of the last one, and the last one, which may be open."""
    start, quote, escaped = 0, "", False
    for place, character in enumerate(text):
        if escaped:
            escaped = False
        elif quote:
            quote = "" if character == quote else quote
        elif character == "\\":
            escaped = True
        elif character in "'\"":
            quote = character
        elif character == " ":
            start = place + 1
    return text[:start], text[start:]

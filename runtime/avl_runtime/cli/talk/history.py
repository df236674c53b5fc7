"""What was typed in earlier sessions: one JSON text a line, in the user's state folder."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

KEPT = 1000  # messages
LONGEST = 10_000  # characters of one; pasted pictures are no history
MOST_BYTES = 16 << 20  # a larger file is not ours


class History:
    """Messages of this and earlier sessions. A file that cannot be read or written is done without.

    Attributes:
        entries: the last ones, oldest first.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.entries: list[str] = []
        if path is not None:
            with suppress(OSError, ValueError):
                self._read(path)

    def add(self, text: str) -> None:
        """Note a message, unless it is the last one again."""
        if not text.strip() or len(text) > LONGEST or [text] == self.entries[-1:]:
            return
        self.entries.append(text)
        if self._path is not None:
            with suppress(OSError, ValueError):
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                private = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                with os.fdopen(os.open(self._path, private, 0o600), "w", encoding="utf-8") as file:
                    file.write(json.dumps(text) + "\n")

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            self._path = None
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines:
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, str):
                    self.entries.append(entry)
        self.entries = self.entries[-KEPT:]
        if len(lines) > 2 * KEPT:
            self._shorten(path)

    def _shorten(self, path: Path) -> None:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".history-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in self.entries)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)


def history_path() -> Path | None:
    """Where the history lies: below XDG_STATE_HOME, else ~/.local/state; None without a home."""
    named = os.environ.get("XDG_STATE_HOME", "")
    with suppress(RuntimeError):  # a home that nobody knows
        # The standard wants relative paths to be ignored.
        state = Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "state"
        return state / "avl" / "history.jsonl"
    return None

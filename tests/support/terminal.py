"""A program on a terminal of its own, driven as a person would: wait for text, then type."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence

# Ctrl-C reaches the processes of the session whose terminal it is.
LAUNCH = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
AGAIN = 30.0  # seconds after which a person presses Ctrl-C again
PATIENCE = 300.0  # seconds; on a busy machine a program may take long to begin
_FORWARD = re.compile(rb"(\x08*)\x1b\[(\d*)C")
_CONTROL = re.compile(rb"\x1b\[[0-9;?=>]*[A-Za-z]|\x1b[=>78]|\x1b\][^\x07]*\x07|\r")


class Terminal:
    """A pseudo-terminal with a program that has it as stdin, stdout and stderr.

    Attributes:
        seen: all that was shown, without control sequences.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._host, guest = pty.openpty()
        fcntl.ioctl(guest, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *command],
            stdin=guest,
            stdout=guest,
            stderr=guest,
            env={**os.environ, "TERM": "xterm", **environment},
            start_new_session=True,
        )
        os.close(guest)
        self._raw = b""
        self._from = 0

    @property
    def seen(self) -> str:
        # Steps forward are how spaces are shown without being written.
        spaced = _FORWARD.sub(lambda found: b" " * (int(found[2] or 1) - len(found[1])), self._raw)
        return _CONTROL.sub(b"", spaced).decode(errors="replace")

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._host, text.encode())

    def interrupt(self, text: str, behind: str = "") -> None:
        """Type `behind` and Ctrl-C at once, then wait until `text` is shown.

        A Ctrl-C that comes after `input` has shown its prompt and before it waits for keys is
        noticed with the next key alone, so that a person presses it again.
        """
        self.type(behind + "\x03")
        try:
            self.wait_for(text, AGAIN)
        except AssertionError:
            self.type("\x03")
            self.wait_for(text)

    def wait_for(self, text: str, patience: float = PATIENCE) -> str:
        """Wait until `text` is shown behind what was waited for last; returns what is between."""
        deadline = time.monotonic() + patience
        while True:
            shown = self.seen
            place = shown.find(text, self._from)
            if place >= 0:
                between = shown[self._from : place]
                self._from = place + len(text)
                return between
            if not self._read(deadline):
                raise AssertionError(f"expected {text!r}, found {shown[self._from :]!r}")

    def end(self) -> int:
        """Wait for the program's end; returns its exit status."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self._process.wait(PATIENCE)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._host)

    def _read(self, deadline: float) -> bool:
        """Read on; False at the program's end or when patience is at its end."""
        if not select.select([self._host], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._host, 1 << 16)
        except OSError:  # Linux's way to say that nobody has the terminal any more
            return False
        self._raw += data
        return bool(data)

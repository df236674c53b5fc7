"""A program on a terminal of its own, driven as a person would: wait for text, then type."""

from __future__ import annotations

import fcntl
import os
import platform
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Ctrl-C reaches the processes of the session whose terminal it is.
LAUNCH = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
PATIENCE = 300.0  # seconds; on a busy machine a program may take long to begin
# Linux's numbers of read, poll, select and epoll_wait: what who waits for keys is in.
WAITING = {
    "x86_64": (0, 7, 23, 232, 270, 271, 281),
    "aarch64": (22, 63, 72, 73),
}
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
        """At a prompt type `behind` and Ctrl-C at once, then wait until `text` is shown.

        A Ctrl-C that comes when nobody waits for keys yet is noticed by `input` much later, so it
        comes when somebody does. One that takes away keys which readline was about to read is
        noticed when another key and another signal have come, as is sent behind `behind`.
        """
        self._wait_until_asked()
        start = self._from
        self.type(f"{behind}\x03")
        if behind:
            self.type("~")
            self.wait_for("~")
            self._wait_until_asked()
            self._process.send_signal(signal.SIGWINCH)  # changes nothing, as the size is the same
            self._wait_until_asked()
            self.type("\x7f")
            self._from = start
        self.wait_for(text)

    def _wait_until_asked(self) -> None:
        """Wait until the program's main thread waits for keys."""
        file = Path(f"/proc/{self._process.pid}/syscall")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            number = file.read_text().split()[0]  # or "running"
            if number.isdecimal() and int(number) in WAITING[platform.machine()]:
                return
            time.sleep(0.001)
        raise AssertionError("expected a program that waits for keys")

    def wait_for(self, text: str) -> str:
        """Wait until `text` is shown behind what was waited for last; returns what is between."""
        deadline = time.monotonic() + PATIENCE
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

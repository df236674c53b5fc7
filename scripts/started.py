"""An avl-serve of this checkout, started for a script and stopped behind it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

START = "import sys; from avl_runtime.cli.start import serve; sys.exit(serve())"
STOPPING_S = 60


class Process:
    """A server that runs.

    Attributes:
        port: where it listens.
        pid: of its process.
    """

    def __init__(self, packages: Sequence[str], options: Sequence[str]) -> None:
        """Start it.

        Raises:
            SystemExit: it ended at once; what it said of that.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, *packages, "--port", "0", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._ready.wait()
        port = re.search(r":(\d+)/v1 serves ", "".join(self._lines))
        if port is None:
            self._process.wait(STOPPING_S)
            sys.exit(f"expected a server, found none: {''.join(self._lines[-1:]).strip()}")
        self.port = int(port[1])

    def stop(self) -> None:
        """Have it end.

        Raises:
            AssertionError: it ended otherwise than it should, or told of a fault of its own.
        """
        self._process.terminate()
        status = self._process.wait(STOPPING_S)
        self._reader.join()
        told = "".join(self._lines)
        assert status == 0 and "Traceback" not in told, told

    def _read(self) -> None:
        for line in self._process.stderr or ():
            self._lines.append(line)
            if "/v1 serves " in line:
                self._ready.set()
        self._ready.set()


@contextmanager
def served(packages: Sequence[str], options: Sequence[str]) -> Iterator[Process]:
    """A server of packages.

    Args:
        packages, options: words of avl-serve's command line.
    """
    process = Process(packages, options)
    try:
        yield process
    finally:
        process.stop()

"""Processes that decode pictures: begun when they are needed, kept, ended when they hang.

A process that takes too long is killed, and so is one whose answer is none; the next picture has a
new one. They end with the server, however that ends: nothing more comes through their pipes then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import BinaryIO, Final, cast

from PIL import Image

from avl_plugins.errors import shown
from avl_runtime.serve.decoding.checked import TooManyPixelsError
from avl_runtime.serve.decoding.wire import (
    ANSWERED,
    ASKED,
    CHANNELS,
    MOST_TEXT,
    PICTURE,
    READY,
    REFUSED,
    TOO_MANY_PIXELS,
    strips,
)
from avl_runtime.vision.load.images import MAX_BYTES, ImageError

START_SECONDS: Final = 180.0
# Of memory beside what the process begins with: for libraries, and for each pixel. The largest
# share is that of an animation with transparency: its decoder keeps frames of its own.
SPARE: Final = 128 << 20
PIXEL_BYTES: Final = 48
FILES: Final = 3  # times as large as a file, which some decoders copy
# Paths are handed on, since those of a test or an editable installation are not Python's own.
CODE: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from avl_runtime.serve.decoding.worker import main; main()"
)
# Of the environment only what Python and its libraries need: there may be keys in it.
NEEDED: Final = ("PATH", "HOME", "SYSTEMROOT", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP")
PREFIXES: Final = ("PYTHON", "LD_", "DYLD_")


class StartError(Exception):
    """A process cannot be begun, or is not wanted any more."""


class DiedError(Exception):
    """A process ended while it decoded, or answered what is no answer."""


class TooSlowError(Exception):
    """A picture took longer than was allowed, and its process was killed."""


class Decoders:
    """So many processes at most, for as many threads.

    Args:
        most: processes.
        pixels, size: that a picture may have, and bytes of its file; how much memory a process may
            take follows from them.
        command: what is run in place of the project's own.
    """

    def __init__(
        self, most: int, pixels: int, size: int, command: Sequence[str] | None = None
    ) -> None:
        memory = SPARE + PIXEL_BYTES * pixels + FILES * size
        own = (sys.executable, "-c", CODE, str(memory), *sys.path)
        self._command = own if command is None else command
        self._places = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False

    @property
    def ids(self) -> list[int]:
        """Those of the processes that there are."""
        with self._lock:
            return [one.id for one in self._all]

    def decode(self, data: bytes, pixels: int, seconds: float) -> Image.Image:
        """The picture in `data`, as RGB.

        Args:
            pixels: that it may have.
            seconds: that it may take.

        Raises:
            ImageError: it is damaged, or of a format that is not taken.
            TooManyPixelsError: it has more pixels.
            TooSlowError: it takes longer.
            DiedError: the process ended meanwhile.
            StartError: there is no process to be had.
        """
        with self._places:
            process = self._taken()
            try:
                found = process.decode(data, pixels, seconds)
            except (ImageError, TooManyPixelsError):
                self._give_back(process)
                raise
            except BaseException as error:
                self._end(process)
                if not self._closed:
                    _tell(f"a process that decodes pictures was ended: {error}")
                raise
            self._give_back(process)
            return found

    def close(self) -> None:
        """End all processes; whoever waits for one is told that it died."""
        with self._lock:
            self._closed = True
            left, self._all = self._all, set()
            self._idle.clear()
        for one in left:
            one.end()

    def _taken(self) -> _Process:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.alive:
                    return process
                self._all.discard(process)
                process.end()
        try:
            process = _Process(self._command)
        except (OSError, ValueError, StartError) as error:
            _tell(f"no process that decodes pictures can be begun: {shown(error)}")
            raise StartError from None
        with self._lock:
            if not self._closed:
                self._all.add(process)
                return process
        process.end()
        raise StartError

    def _give_back(self, process: _Process) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(process)

    def _end(self, process: _Process) -> None:
        with self._lock:
            self._all.discard(process)
        process.end()


class _Process:
    """A process, asked by one thread at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        """
        Raises:
            OSError: it cannot be begun.
            StartError: it ends, or says nothing, before it is ready.
        """
        self._process = subprocess.Popen(  # noqa: S603 - our own module in our own Python
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(os.environ),
            start_new_session=True,  # a terminal's Ctrl-C is the server's
        )
        self._inward = cast(BinaryIO, self._process.stdin)
        self._outward = cast(BinaryIO, self._process.stdout)
        try:
            with _Watch(self._process, START_SECONDS):
                ready = self._read(len(READY))
        except (DiedError, TooSlowError) as error:
            self.end()
            raise StartError(str(error)) from None
        if ready != READY:
            self.end()
            raise StartError("it is none")

    @property
    def id(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def decode(self, data: bytes, pixels: int, seconds: float) -> Image.Image:
        """See `Decoders.decode`; whatever it raises but errors of pictures, the process is over."""
        if len(data) > MAX_BYTES:
            raise ImageError(f"expected at most {MAX_BYTES} bytes, found {len(data)}")
        with _Watch(self._process, seconds):
            self._write(ASKED.pack(len(data), pixels, int(seconds) + 1))
            self._write(data)
            kind, first, second = ANSWERED.unpack(self._read(ANSWERED.size))
            if kind == PICTURE and 0 < first * second <= pixels:
                return self._picture(first, second)
            if kind == REFUSED and first <= MOST_TEXT:
                text = self._read(first).decode(errors="replace")
                raise ImageError(shown(text, MOST_TEXT))
            if kind == TOO_MANY_PIXELS:
                raise TooManyPixelsError
        raise DiedError("its answer was none")

    def _picture(self, width: int, height: int) -> Image.Image:
        """What it sends: a part is unpacked while it packs the next one."""
        found = Image.new("RGB", (width, height), None)
        for top, bottom in strips(width, height):
            size = width, bottom - top
            part = Image.frombytes("RGB", size, self._read(CHANNELS * width * size[1]))
            found.paste(part, (0, top))
        return found

    def end(self) -> None:
        """Kill it, if it runs, and have nothing of it left."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._inward, self._outward):
            with suppress(OSError):  # what could not be flushed into it
                pipe.close()

    def _write(self, data: bytes) -> None:
        try:
            self._inward.write(data)
            self._inward.flush()
        except (OSError, ValueError):
            raise DiedError(self._end_of()) from None

    def _read(self, length: int) -> bytes:
        try:
            data = self._outward.read(length)
        except (OSError, ValueError):
            data = b""
        if len(data) < length:
            raise DiedError(self._end_of())
        return data

    def _end_of(self) -> str:
        """How it ended, for the log."""
        code = self._process.wait()
        return signal.strsignal(-code) or str(code) if code < 0 else f"exit status {code}"


class _Watch:
    """Kills a process once so many seconds are over, unless it has been left by then."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._process, self._seconds, self._expired = process, seconds, False
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self._timer.join()  # so that it does not kill what decodes the next picture
        if self._expired:
            raise TooSlowError(f"it took more than {self._seconds:g} s")

    def _expire(self) -> None:
        self._expired = True
        self._process.kill()


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in given.items()
        if name.upper() in NEEDED or name.upper().startswith(PREFIXES)
    }
    # A library of linear algebra would begin a thread for each processor, and multiplies nothing.
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _tell(text: str) -> None:
    print(f"avl-serve: {text}", file=sys.stderr, flush=True)

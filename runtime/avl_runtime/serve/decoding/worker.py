"""The process that decodes pictures: limits on itself, then one picture after the other.

It has neither the server's sockets nor its keys, and imports no more than decoding needs.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from avl_runtime.serve.decoding.checked import TooManyPixelsError, decoded
from avl_runtime.serve.decoding.wire import (
    ANSWERED,
    ASKED,
    MOST_TEXT,
    PICTURE,
    READY,
    REFUSED,
    TOO_MANY_PIXELS,
    strips,
)
from avl_runtime.vision.load.images import MAX_BYTES, ImageError

if sys.platform != "win32":
    import resource


def main() -> None:
    """Decode until the server is gone; `sys.argv[1]` are bytes of memory that may be taken."""
    # Signals are for the server, which still needs this process while its answers run on.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    inward, outward = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints does not come between answers
    Image.init()
    confine(int(sys.argv[1]))
    outward.write(READY)
    outward.flush()
    with suppress(BrokenPipeError):
        while _one(inward, outward):
            pass
    os._exit(0)  # the server is gone, and with it who would read what is left to flush


def confine(memory: int) -> None:
    """Limit what this process may take: bytes of memory from now on, and no dump of it."""
    if sys.platform == "win32":
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit holds for what is mapped and never taken
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = mapped + memory
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def allow(seconds: int) -> None:
    """Limit the processor's time that is taken from now on.

    The server ends what takes too long; this is for a server that is gone itself.
    """
    if sys.platform != "win32":
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        most = int(time.process_time()) + 1 + seconds
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


def _one(inward: BinaryIO, outward: BinaryIO) -> bool:
    """Decode a picture; False where there is none any more."""
    head = inward.read(ASKED.size)
    if len(head) < ASKED.size:
        return False
    length, pixels, seconds = ASKED.unpack(head)
    data = inward.read(length) if length <= MAX_BYTES else b""
    if len(data) < length:
        return False
    allow(seconds)
    try:
        image = decoded(data, pixels)
    except TooManyPixelsError:
        outward.write(ANSWERED.pack(TOO_MANY_PIXELS, 0, 0))
    except ImageError as error:
        text = str(error).encode(errors="replace")[:MOST_TEXT]
        outward.write(ANSWERED.pack(REFUSED, len(text), 0) + text)
    else:
        outward.write(ANSWERED.pack(PICTURE, *image.size))
        for top, bottom in strips(*image.size):
            outward.write(image.crop((0, top, image.width, bottom)).tobytes())
    outward.flush()
    return True

"""What goes through the pipes between a server and a process that decodes pictures.

The server sends `ASKED` and the bytes of a file. The process sends `READY` once, and for each
picture `ANSWERED` and either its pixels, three bytes each, or a sentence in UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final

READY: Final = b"avl-decoder\n"
ASKED: Final = Struct("<QQQ")  # bytes of the file, pixels that are allowed, seconds
ANSWERED: Final = Struct("<BII")  # one of the three below; width and height, or bytes and 0
PICTURE, REFUSED, TOO_MANY_PIXELS = range(3)
MOST_TEXT: Final = 2000  # bytes of a sentence
CHANNELS: Final = 3
STRIP: Final = 1 << 20  # bytes of pixels, at most, that are packed and sent at a time


def strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """The first row of each part in which a picture's pixels are sent, and the one behind it."""
    rows = max(1, STRIP // (CHANNELS * width))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)

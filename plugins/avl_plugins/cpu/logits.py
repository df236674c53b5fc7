"""Which logits the host reads, said to the kernel of LogitsLinear.

Greedy decoding reads the largest logit of a step alone, and most chunks of a prompt none. Graphs
have no word for that, so the host says it for the runs of its thread.
"""

from __future__ import annotations

import ctypes
import enum
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avl_plugins import cpu


class Logits(enum.IntEnum):
    """What is read of the logits; numbered as in ort_logits.c.

    ALL: every one. LARGEST: the largest of each row, and others that are no smaller; in place of
    the rest there may be -inf. NONE: there may be NaN.
    """

    ALL = 0
    LARGEST = 1
    NONE = 2


@contextmanager
def wanted(logits: Logits) -> Iterator[None]:
    """Runs inside the `with` statement, of this thread, may leave out what is not read."""
    library = cpu.library()
    if library is None or logits is Logits.ALL:
        yield
        return
    say = _function(library)
    say(logits)
    try:
        yield
    finally:
        say(Logits.ALL)


@functools.cache
def _function(library: Path) -> Any:
    function = ctypes.CDLL(str(library)).avl_want_logits
    function.restype, function.argtypes = None, (ctypes.c_int,)
    return function

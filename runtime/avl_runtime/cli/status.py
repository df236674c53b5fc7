"""What a command's end means for its exit status."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from avl_plugins.errors import AvlError, shown
from avl_runtime.cli.start import INTERRUPTED, stopped

Handler = Callable[[int, FrameType | None], Any]


def exit_status(
    name: str,
    work: Callable[[], int],
    left: str = "",
    on_term: Handler = signal.default_int_handler,
) -> int:
    """Do a command's work; returns its status, 1 (a failure, told in one line) or 130 (stopped).

    Args:
        name: of the command.
        left: what being stopped leaves behind, for people.
        on_term: what a polite kill does; as a rule it cleans up as Ctrl-C does.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character shows a question mark.
        sys.stdout.reconfigure(errors="replace")
    pressed = threading.Event()
    try:
        with _signals(pressed, on_term):
            status = work()
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # the reader of our results has gone, as in `... | head`
        _drop_output()
        return 1
    except AvlError as error:
        if not pressed.is_set():
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    except OSError as error:
        if not pressed.is_set():
            print(f"{name}: expected to read and write, found: {shown(error)}", file=sys.stderr)
            _drop_output()
            return 1
    except KeyboardInterrupt:
        pass
    except Exception:  # what an import makes of Ctrl-C is any exception
        if not pressed.is_set():
            raise
    else:
        return status
    print(stopped(name, left), file=sys.stderr)
    return INTERRUPTED


@contextmanager
def _signals(pressed: threading.Event, on_term: Handler) -> Iterator[None]:
    """Note Ctrl-C, and mind a polite kill, where signals can be handled."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        pressed.set()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, on_term)
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored in the background, or a caller's own
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _drop_output() -> None:
    """Send what is still buffered nowhere, or Python would complain at exit."""
    with suppress(AttributeError, OSError, ValueError):  # there is none, or it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""What a command's end means for its exit status, the same for all that do not converse."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

from avl_plugins.errors import AvlError

INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C


def exit_status(name: str, work: Callable[[], int], left: str = "") -> int:
    """Do a command's work; returns its status, 1 (a failure, told in one line) or 130 (stopped).

    Args:
        name: of the command.
        left: what being stopped leaves behind, for people.
    """
    if threading.current_thread() is threading.main_thread():
        # A polite kill shall clean up as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = work()
        sys.stdout.flush()
    except AvlError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: stopped{left and f', {left}'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our results has gone, as in `... | head`
        sys.stdout = None
        return 1
    return status

"""Where console scripts begin: Ctrl-C gives one line and status 130 from the first moment on.

This module imports next to nothing, and the packages around it neither, so that whoever presses
Ctrl-C while a command's own imports still run does not see a traceback.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
from importlib import import_module
from types import FrameType

INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C


def start(name: str, module: str) -> int:
    """Import a command's module and run its `main`; returns the exit status."""

    def leave(number: int, frame: FrameType | None) -> None:
        # An exception might be swallowed by whatever is being imported.
        os.write(2, (stopped(name) + "\n").encode())
        os._exit(INTERRUPTED)

    # A shell lets programs in the background ignore Ctrl-C: that stays.
    minded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if minded:
        signal.signal(signal.SIGINT, leave)
        sys.unraisablehook = _again
    main = import_module(module).main
    try:
        if minded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = int(main())
        if minded:  # the work is done, only Python's own end is left
            signal.signal(signal.SIGINT, lambda number, frame: os._exit(status))
    except KeyboardInterrupt:
        print(stopped(name), file=sys.stderr)
        return INTERRUPTED
    return status


def stopped(name: str, left: str = "") -> str:
    """What is said after Ctrl-C: on a terminal below its `^C`, elsewhere one line."""
    line = f"{name}: stopped{left and f', {left}'}"
    return f"\n{line}" if os.isatty(2) else line


def _again(problem: sys.UnraisableHookArgs) -> None:
    """Ctrl-C in a destructor or a callback would be printed and forgotten: press it once more."""
    if issubclass(problem.exc_type, KeyboardInterrupt):
        _thread.interrupt_main()
    else:
        sys.__unraisablehook__(problem)


def run() -> int:
    """avl-run."""
    return start("avl-run", "avl_runtime.cli.run")


def info() -> int:
    """avl-info."""
    return start("avl-info", "avl_runtime.cli.info")


def build() -> int:
    """avl-build."""
    return start("avl-build", "avl_runtime.cli.build")


def doctor() -> int:
    """avl-doctor."""
    return start("avl-doctor", "avl_runtime.cli.doctor")


def evaluate() -> int:
    """avl-eval."""
    return start("avl-eval", "avl_runtime.cli.eval")


def tune() -> int:
    """avl-tune."""
    return start("avl-tune", "avl_runtime.cli.tune")


def bench() -> int:
    """avl-bench."""
    return start("avl-bench", "avl_runtime.cli.bench")


def serve() -> int:
    """avl-serve."""
    return start("avl-serve", "avl_runtime.cli.serve")


def batch() -> int:
    """avl-batch."""
    return start("avl-batch", "avl_runtime.cli.batch")

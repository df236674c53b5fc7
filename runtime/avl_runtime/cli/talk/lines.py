"""How lines are typed: with prompt_toolkit where it is installed, with readline, or plainly."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from types import FrameType, ModuleType
from typing import Any, TextIO

from avl_runtime.cli.talk.completion import last_part
from avl_runtime.cli.talk.history import History
from avl_runtime.cli.talk.typed import ClearedError, Complete, Lines


def choose_lines(history: History, complete: Complete, aside: TextIO) -> Lines:
    """The best there is on this terminal.

    Args:
        aside: where prompts go if stdout is a file.
    """
    stdin, stdout = _is_terminal(sys.stdin), _is_terminal(sys.stdout)
    if stdin and os.environ.get("TERM") != "dumb":
        if find_spec("prompt_toolkit") is not None and (stdout or _is_terminal(aside)):
            # Not everyone has it.
            from avl_runtime.cli.talk.toolkit import ToolkitLines

            return ToolkitLines(history, complete, sys.stdout if stdout else aside)
        if stdout and find_spec("readline") is not None:
            return ReadlineLines(history, complete)
    return PlainLines(aside)


class PlainLines:
    """Lines as the terminal itself edits them; the prompt goes aside if stdout is a file."""

    sees = False

    def __init__(self, aside: TextIO) -> None:
        self._aside = aside

    def read(self, prompt: str, keep: bool = True) -> str:
        """See `Lines`."""
        if _is_terminal(sys.stdout):
            return input(prompt)
        print(prompt, end="", file=self._aside, flush=True)
        return input()


class ReadlineLines:
    """Lines that the readline module edits, GNU's or libedit's."""

    sees = True

    def __init__(self, history: History, complete: Complete) -> None:
        self._history = history
        self._complete = complete
        self._prompt = ""
        self._found: Sequence[str] = ()
        self._readline: Any = _readline()
        self._readline.clear_history()
        for entry in history.entries:
            self._readline.add_history(entry)
        self._readline.set_auto_history(False)
        self._readline.set_completer(self._candidate)
        self._readline.set_completer_delims("\n")
        if "libedit" in (self._readline.__doc__ or ""):
            self._readline.parse_and_bind("bind ^I rl_complete")
        else:
            self._readline.parse_and_bind("tab: complete")
            # Python turns it off; with it, pasted lines are one message.
            self._readline.parse_and_bind("set enable-bracketed-paste on")
            self._readline.set_completion_display_matches_hook(self._display)

    def read(self, prompt: str, keep: bool = True) -> str:
        """See `Lines`."""
        self._prompt = prompt
        typed = False

        def press(number: int, frame: FrameType | None) -> None:
            nonlocal typed
            typed = bool(self._readline.get_line_buffer())  # afterwards it is empty
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, press)
        try:
            line = input(prompt)
        except KeyboardInterrupt:
            if typed:
                print()
                raise ClearedError from None
            raise
        finally:
            signal.signal(signal.SIGINT, before)
        if keep:
            self._history.add(line)
            if line.strip():
                self._readline.add_history(line)
        return line

    def _candidate(self, text: str, state: int) -> str | None:
        if state == 0:
            self._found = self._complete(text)
        return self._found[state] if state < len(self._found) else None

    def _display(self, text: str, matches: Sequence[str], longest: int) -> None:
        print("\n" + "  ".join(map(last_part, matches)))
        print(self._prompt + self._readline.get_line_buffer(), end="", flush=True)


def _readline() -> ModuleType:
    return importlib.import_module("readline")


def _is_terminal(stream: Any) -> bool:
    try:
        return os.isatty(stream.fileno())
    except (AttributeError, OSError, ValueError):  # none, or one that is no file
        return False

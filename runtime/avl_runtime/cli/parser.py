"""What the command lines share: --version, an example and defaults in the help, exit status 2."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from avl_runtime import __version__

Parsed = TypeVar("Parsed")
LONGEST = 80  # characters of one argument that a message repeats


class CommandParser(argparse.ArgumentParser):
    """A parser with `--version`, whose help shows every option's default and one example.

    Args:
        example: a whole command line that works.
        notes: what else belongs below the options.
    """

    def __init__(self, prog: str, description: str, example: str, notes: str = "") -> None:
        epilog = f"{notes}\n\nexample:\n  {example}" if notes else f"example:\n  {example}"
        super().__init__(
            prog=prog, description=description, epilog=epilog, formatter_class=_Formatter
        )
        self.example = example
        self.notes = notes
        self._given: list[str] = []
        version = f"%(prog)s {__version__}"
        self.add_argument("--version", action="version", version=version, help="print the version")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; notes the arguments, which `error` repeats in part."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the usage and one sentence, exit with 2; long arguments are cut."""
        for word in sorted(_parts(self._given), key=len, reverse=True):
            for form in (word, repr(word)[1:-1]):
                message = message.replace(form, f"{word[:LONGEST]!r}"[1:-1] + "…")
        super().error(textwrap.shorten(message, 1000, placeholder=" …"))


class _Formatter(argparse.HelpFormatter):
    """Lines that begin with a space stay as they are; options without a default say so."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.splitlines()
        return "\n".join(
            line if line.startswith(" ") else textwrap.fill(line, width, initial_indent=indent)
            for line in lines
        )

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        if not action.option_strings or action.nargs == 0 or action.required or not text:
            return text
        if "default" in text:
            return text
        shown = "none" if action.default in (None, [], (), "") else "%(default)s"
        return f"{text} (default: {shown})"


def _parts(given: Sequence[str]) -> set[str]:
    """The long ones of the arguments and of the values in --option=value."""
    values = [word.partition("=")[2] for word in given if word.startswith("-")]
    return {word for word in [*given, *values] if len(word) > LONGEST}

"""Question after question, typed in a terminal."""

from __future__ import annotations

import signal
from collections.abc import Callable

from avl_plugins.errors import AvlError
from avl_runtime.cli.session import Session
from avl_runtime.cli.talk.commands import COMMANDS, refuse_bare_file, run_command
from avl_runtime.cli.talk.completion import candidates
from avl_runtime.cli.talk.history import History, history_path
from avl_runtime.cli.talk.lines import choose_lines
from avl_runtime.cli.talk.sources import Shown, Sources
from avl_runtime.cli.talk.typed import ClearedError, Lines

PROMPT, MORE = "> ", "... "
QUOTES = '"""'


class Talk:
    """A conversation that lasts until its end is typed.

    Args:
        shown: goes with the first question.

    Attributes:
        shown: what waits for the next question.
        ended: whether the end has been typed.
    """

    def __init__(self, session: Session, shown: Shown, sources: Sources) -> None:
        self.session = session
        self.shown = shown
        self.sources = sources
        self.ended = False
        self._leaving = False
        self._lines: Lines = choose_lines(History(history_path()), _complete, session.extras.stream)

    def run(self) -> None:
        """Read and answer.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed twice where nothing had been typed.
        """
        self.tell("/help lists the commands, /quit or Ctrl-D leaves")
        self._try(self._tell_first)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            while not self.ended:
                self._try(self._turn)
        except EOFError:
            print()
        finally:
            signal.signal(signal.SIGINT, before)

    def tell(self, line: str) -> None:
        """Say something that is no answer of the model."""
        print(line, file=self.session.extras.stream, flush=True)

    def agrees(self, question: str) -> bool:
        """Ask whether to do what cannot be undone; anything but yes is no."""
        try:
            answer = self._lines.read(f"{question} [y/N] ", keep=False)
        except (ClearedError, KeyboardInterrupt, EOFError):
            return False
        return answer.strip().lower() in ("y", "yes")

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except AvlError as error:
            self.tell(f"avl-run: {error}")
        except UnicodeDecodeError:
            self.tell("avl-run: expected text in UTF-8, found other bytes; type it again")
        except ClearedError:
            pass

    def _tell_first(self) -> None:
        for line in self.sources.told(self.shown, self.shown, self.session.model.processor):
            self.tell(line)

    def _turn(self) -> None:
        text = self._read().strip()
        if text.startswith(QUOTES):
            self._ask(self._rest_of(text[len(QUOTES) :]))
            return
        # Pasted lines are one message, behind the commands that they begin with.
        while text.startswith("/") and not self.ended:
            first, _, rest = text.partition("\n")
            if rest and first.split()[0] not in COMMANDS:
                break
            run_command(self, first.strip())
            text = rest.strip()
        if not self.ended:
            refuse_bare_file(text)
            self._ask(text)

    def _read(self) -> str:
        """What is typed; the first Ctrl-C where nothing is says how to leave, the second does."""
        try:
            text = self._lines.read(PROMPT)
        except KeyboardInterrupt:
            print()
            if self._leaving:
                raise
            self._leaving = self._lines.sees
            again = "Ctrl-C again, " if self._leaving else ""
            self.tell(f"{again}/quit or Ctrl-D leaves")
            raise ClearedError from None
        except ClearedError:
            self._leaving = False
            raise
        self._leaving = False
        return text

    def _rest_of(self, text: str) -> str:
        """A message of several lines, up to the quotes that close it."""
        try:
            while not text.rstrip().endswith(QUOTES):
                text += "\n" + self._lines.read(MORE)
        except KeyboardInterrupt:
            print()
            raise ClearedError from None
        return text.rstrip()[: -len(QUOTES)].strip()

    def _ask(self, text: str) -> None:
        if not text:
            return
        chat, asked = self.session.chat, self.shown
        before, self.shown = len(chat.messages), Shown()
        try:
            with self.session.interruptible():
                self.session.ask(text, asked)
        except KeyboardInterrupt:
            print()
            read = len(chat.messages) > before
            self.tell(f"[stopped{'; /undo takes the question back' if read else ''}]")
        except AvlError:
            if len(chat.messages) == before:  # nobody has seen them
                self.shown = asked
            raise
        finally:
            if self.shown.count:
                self.tell(f"{self.shown.counted()} still waiting; /clear drops what waits, too")


def _complete(line: str) -> list[str]:
    return candidates(line, list(COMMANDS))

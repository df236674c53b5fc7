"""Lines that prompt_toolkit edits: pasted lines stay together, Tab shows a menu."""

from __future__ import annotations

import os
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.output import create_output

from avl_runtime.cli.talk.completion import last_part
from avl_runtime.cli.talk.history import History
from avl_runtime.cli.talk.typed import ClearedError, Complete


class ToolkitLines:
    """See `typed.Lines`.

    Args:
        output: the terminal.
    """

    sees = True

    def __init__(self, history: History, complete: Complete, output: TextIO) -> None:
        # Without a menu bar the cursor's place need not be asked for, which some terminals ignore.
        os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
        self._history = history
        self._complete = complete
        self._shown: dict[str, str] = {}
        self._earlier = InMemoryHistory(history.entries)
        self._output = create_output(output)
        self._kept = self._session(self._earlier)
        self._asked = self._session(InMemoryHistory())

    def read(self, prompt: str, keep: bool = True) -> str:
        """See `Lines`."""
        session = self._kept if keep else self._asked
        try:
            line = session.prompt(prompt)
        except KeyboardInterrupt:
            if session.default_buffer.text:
                raise ClearedError from None
            raise
        if keep:
            self._history.add(line)
        return str(line)

    def _session(self, history: InMemoryHistory) -> PromptSession[str]:
        words = WordCompleter(self._candidates, sentence=True, display_dict=self._shown)
        return PromptSession(
            history=history,
            completer=words,
            complete_while_typing=False,
            enable_history_search=True,
            output=self._output,
        )

    def _candidates(self) -> list[str]:
        found = self._complete(get_app().current_buffer.document.text_before_cursor)
        self._shown.clear()
        self._shown.update({line: last_part(line) for line in found})
        return list(found)

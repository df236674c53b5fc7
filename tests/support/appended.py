"""What later turns of a chat add to its prompt."""

from __future__ import annotations

from typing import Any

import pytest

from avl_runtime.prompts.processor import Processor
from avl_runtime.prompts.prompt import Prompt


def appended_prompts(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """A list that gets the prompt of each later turn of every chat from now on."""
    found: list[Prompt] = []
    continue_chat = Processor.continue_chat

    def spy(self: Processor, *turn: Any) -> Prompt:
        found.append(continue_chat(self, *turn))
        return found[-1]

    monkeypatch.setattr(Processor, "continue_chat", spy)
    return found

"""Items of a response: a message, or a call of a function."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]


@dataclass(slots=True)
class Item:
    """An item of a response's output.

    Attributes:
        name: of the function that is called; None for a message.
        text: of the message, or of the arguments.
    """

    name: str | None = None
    text: str = ""
    _number: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def id(self) -> str:
        """By which events name it."""
        return f"{'msg' if self.name is None else 'fc'}_{self._number}"

    def shown(self, status: str, *, begun: bool = False) -> Object:
        """The item as clients are told it.

        Args:
            status: in_progress, completed or incomplete.
            begun: whether nothing of it has come yet.
        """
        found: Object = {"id": self.id, "status": status}
        if self.name is None:
            content = [] if begun else [text_part(self.text)]
            return found | {"type": "message", "role": "assistant", "content": content}
        return found | {
            "type": "function_call",
            "call_id": f"call_{self._number[:24]}",
            "name": self.name,
            "arguments": self.text,
        }


def text_part(text: str) -> Object:
    """The one part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

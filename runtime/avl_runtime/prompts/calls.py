"""Calls of functions as messages hold them, and as models write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model made.

    Attributes:
        id: by which the function's answer names it.
        arguments: by name, as JSON has them.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The call as messages have it."""
        function = {"name": self.name, "arguments": dict(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a model writes calls: `begin`, a name, `middle`, arguments in JSON, `end`.

    Attributes:
        trigger: how `begin` begins; it stands in no other text.
        between: what stands between two calls.
    """

    trigger: str
    begin: str
    middle: str
    end: str
    between: str


HERMES: Final = CallForm(  # Qwen and many others
    "<tool_call>",
    '<tool_call>\n{"name": "',
    '", "arguments": ',
    "}\n</tool_call>",
    "\n",
)
MISTRAL: Final = CallForm("[TOOL_CALLS]", "[TOOL_CALLS]", "[ARGS]", "", "")
FORMS: Final = (HERMES, MISTRAL)


def written_as(text: str, call: ToolCall) -> CallForm | None:
    """The form in which a text has a call, None if it is none of those known."""
    for form in FORMS:
        for separators in ((", ", ": "), (",", ":")):
            arguments = json.dumps(call.arguments, separators=separators)
            if f"{form.begin}{call.name}{form.middle}{arguments}{form.end}" in text:
                return form
    return None

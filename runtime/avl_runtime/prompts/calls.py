"""Calls of functions as messages hold them, and as models write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

KEY: Final = "arg_key"  # the tags of arguments that are written one by one
VALUE: Final = "arg_value"


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
    """How a model writes calls: `begin`, a name, `middle`, arguments, `end`.

    Attributes:
        trigger: how `begin` begins; it stands in no other text.
        between: what stands between two calls.
        line: what stands behind the name and each part of arguments that are written one by one
            between tags, texts as they are and all else in JSON; None for arguments in JSON.
    """

    trigger: str
    begin: str
    middle: str
    end: str
    between: str
    line: str | None = None

    def written(self, call: ToolCall, separators: tuple[str, str]) -> str:
        """A call as the model writes it.

        Args:
            separators: of JSON, between two parts and behind a name.
        """
        begin, line = f"{self.begin}{call.name}{self.middle}", self.line
        if line is None:
            return f"{begin}{json.dumps(call.arguments, separators=separators)}{self.end}"
        parts = [begin + line]
        for name, value in call.arguments.items():
            text = value if isinstance(value, str) else json.dumps(value, separators=separators)
            parts.append(f"<{KEY}>{name}</{KEY}>{line}<{VALUE}>{text}</{VALUE}>{line}")
        return "".join([*parts, self.end])


HERMES: Final = CallForm(  # Qwen and many others
    "<tool_call>",
    '<tool_call>\n{"name": "',
    '", "arguments": ',
    "}\n</tool_call>",
    "\n",
)
MISTRAL: Final = CallForm("[TOOL_CALLS]", "[TOOL_CALLS]", "[ARGS]", "", "")
GLM: Final = CallForm("<tool_call>", "<tool_call>", "", "</tool_call>", "\n", "\n")  # to 4.6
GLM_DENSE: Final = CallForm("<tool_call>", "<tool_call>", "", "</tool_call>", "", "")  # from 4.7
FORMS: Final = (HERMES, MISTRAL, GLM, GLM_DENSE)


def written_as(text: str, call: ToolCall) -> CallForm | None:
    """The form in which a text has a call, None if it is none of those known."""
    for form in FORMS:
        for separators in ((", ", ": "), (",", ":")):
            if form.written(call, separators) in text:
                return form
    return None

"""Functions that a client offers, and which of them the answer must call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from avl_runtime.generate.call_grammar import Function, call_grammar
from avl_runtime.generate.grammars import (
    LONGEST_SCHEMA,
    Grammar,
    GrammarError,
    Grammars,
    json_grammar,
)
from avl_runtime.prompts.calls import CallForm, ToolCall
from avl_runtime.serve import values
from avl_runtime.serve.errors import refused

MOST_TOOLS: Final = 128
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
LONGEST_DESCRIPTION: Final = 1 << 16
LONGEST_ARGUMENTS: Final = 1 << 20
NO_ARGUMENTS: Final = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Tools:
    """What may be called.

    Attributes:
        told: the functions as a chat template takes them.
        functions: that may be called.
        must: whether one must be.
        several: whether more than one may be.
    """

    told: tuple[Mapping[str, Any], ...]
    functions: tuple[Function, ...]
    must: bool
    several: bool

    def grammar(self, grammars: Grammars, form: CallForm, answer: Grammar | None) -> Grammar:
        """Answers and calls, as a model writes them.

        Args:
            answer: what an answer is; None for any text.

        Raises:
            AvlError: a grammar cannot be made of them.
        """
        return call_grammar(
            form,
            self.functions,
            grammars.literal,
            must=self.must,
            several=self.several,
            answer=answer,
        )


def tools_of(given: Mapping[str, Any]) -> Tools | None:
    """Read `tools`, `tool_choice` and `parallel_tool_calls`; None where nothing may be called.

    Raises:
        ApiError: they cannot be used.
        MissingError: llguidance is not installed.
    """
    listed = values.items(given.get("tools", []), "tools", 0, MOST_TOOLS)
    read = [_function(one, f"tools[{at}]") for at, one in enumerate(listed)]
    functions = {one.name: one for _, one in read}
    if len(functions) < len(read):
        raise refused("tools: expected a name for each function, found two alike", "tools")
    if sum(len(one.arguments.source) for one in functions.values()) > LONGEST_SCHEMA:
        raise refused(
            f"tools: expected parameters of at most {LONGEST_SCHEMA} bytes together, found more; "
            "shorten them",
            "tools",
        )
    several = values.flag(given.get("parallel_tool_calls", True), "parallel_tool_calls")
    choice = given.get("tool_choice", "auto")
    named = _named(choice, list(functions))
    if not functions or choice == "none":
        if choice == "required":
            raise refused("tool_choice: expected tools beside it, found none; add some", "tools")
        return None
    told = tuple(tool for tool, _ in read)
    if named is not None:
        return Tools(told, (functions[named],), must=True, several=False)
    return Tools(told, tuple(functions.values()), choice == "required", several)


def _named(choice: object, known: list[str]) -> str | None:
    """The function that must be called, if one is named."""
    if isinstance(choice, str) and choice in ("none", "auto", "required"):
        return None
    expected = "none, auto, required, or a function of tools by name"
    if not isinstance(choice, dict) or choice.get("type") != "function":
        raise values.wrong("tool_choice", expected, choice)
    given = values.an_object(choice, "tool_choice", ("type", "function"))
    named = values.an_object(given.get("function"), "tool_choice.function", ("name",)).get("name")
    if not isinstance(named, str) or named not in known:
        raise values.wrong("tool_choice.function.name", "a function of tools", named)
    return named


def _function(value: object, name: str) -> tuple[Mapping[str, Any], Function]:
    given = values.an_object(value, name, ("type", "function"))
    if given.get("type") != "function":
        raise values.wrong(f"{name}.type", "function", given.get("type"))
    name = f"{name}.function"
    known = ("name", "description", "parameters", "strict")
    described = values.an_object(given.get("function"), name, known)
    called = values.text(described.get("name"), f"{name}.name", 64)
    if NAME.fullmatch(called) is None:
        raise values.wrong(f"{name}.name", "letters, digits, _ and -", called)
    if "description" in described:
        values.text(described["description"], f"{name}.description", LONGEST_DESCRIPTION)
    strict = values.flag(described.pop("strict", False), f"{name}.strict")
    parameters = described.get("parameters", NO_ARGUMENTS)
    if isinstance(parameters, dict) and not parameters:
        parameters = NO_ARGUMENTS
    if not isinstance(parameters, dict) or parameters.get("type") != "object":
        raise values.wrong(f"{name}.parameters", "a schema of the type object", parameters)
    try:
        grammar = json_grammar(parameters, f"{name}.parameters", strict=strict)
    except GrammarError as error:
        raise refused(str(error), f"{name}.parameters") from None
    told = described | {"parameters": parameters}
    return {"type": "function", "function": told}, Function(called, grammar)


def calls_of(value: object, name: str) -> tuple[ToolCall, ...]:
    """Calls of an assistant's message.

    Raises:
        ApiError: they are none.
    """
    listed = values.items(value, name, 0, MOST_TOOLS)
    return tuple(_call(one, f"{name}[{at}]") for at, one in enumerate(listed))


def _call(value: object, name: str) -> ToolCall:
    given = values.an_object(value, name, ("id", "type", "function", "index"))
    if given.get("type", "function") != "function":
        raise values.wrong(f"{name}.type", "function", given["type"])
    number = values.text(given.get("id"), f"{name}.id", 256)
    function = values.an_object(given.get("function"), f"{name}.function", ("name", "arguments"))
    called = values.text(function.get("name"), f"{name}.function.name", 64)
    if NAME.fullmatch(called) is None:
        raise values.wrong(f"{name}.function.name", "letters, digits, _ and -", called)
    at = f"{name}.function.arguments"
    text = values.text(function.get("arguments"), at, LONGEST_ARGUMENTS)
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise values.wrong(at, "a JSON object as text", text)
    return ToolCall(number, called, arguments)

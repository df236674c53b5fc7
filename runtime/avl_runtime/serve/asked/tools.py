"""Functions that a client offers, and which of them the answer must call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from avl_runtime.generate.call_grammar import Function, call_grammar
from avl_runtime.generate.call_reader import CallReader
from avl_runtime.generate.grammars import LONGEST_SCHEMA, Grammar, Grammars
from avl_runtime.generate.tagged_calls import properties_of
from avl_runtime.prompts.calls import CallForm, ToolCall
from avl_runtime.serve.asked import values
from avl_runtime.serve.asked.formats import grammar_of
from avl_runtime.serve.errors import refused

MOST_TOOLS: Final = 128
LONGEST_ARGUMENTS: Final = 1 << 20
DEEPEST_ARGUMENTS: Final = 64
NO_ARGUMENTS: Final = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Tools:
    """What may be called.

    Attributes:
        told: the functions as a chat template takes them.
        functions: that may be called.
        must: whether one must be.
        several: whether more than one may be.
        asked: the fields as the client wrote them.
    """

    told: tuple[Mapping[str, Any], ...]
    functions: tuple[Function, ...]
    must: bool
    several: bool
    asked: Mapping[str, Any]

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

    def reader(self, form: CallForm) -> CallReader:
        """What tells calls in a reply that the grammar has held."""
        if form.line is None:
            return CallReader(form)
        texts = {
            function.name: [
                one.name for one in properties_of(function.name, function.arguments) if one.is_text
            ]
            for function in self.functions
        }
        return CallReader(form, texts)


def tools_of(given: Mapping[str, Any], *, nested: bool = True) -> Tools | None:
    """Read `tools`, `tool_choice` and `parallel_tool_calls`; None where nothing may be called.

    Args:
        nested: whether a function lies in an object of its own, or beside its type.

    Raises:
        ApiError: they cannot be used.
        MissingError: llguidance is not installed.
    """
    listed = values.items(given.get("tools", []), "tools", 0, MOST_TOOLS)
    read = [_function(one, f"tools[{at}]", nested) for at, one in enumerate(listed)]
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
    named = _named(choice, list(functions), nested)
    if not functions or choice == "none":
        if choice == "required":
            raise refused("tool_choice: expected tools beside it, found none; add some", "tools")
        return None
    asked = {"tools": listed, "tool_choice": choice, "parallel_tool_calls": several}
    told = tuple(tool for tool, _ in read)
    if named is not None:
        return Tools(told, (functions[named],), must=True, several=False, asked=asked)
    return Tools(told, tuple(functions.values()), choice == "required", several, asked)


def _named(choice: object, known: list[str], nested: bool) -> str | None:
    """The function that must be called, if one is named."""
    if isinstance(choice, str) and choice in ("none", "auto", "required"):
        return None
    expected = "none, auto, required, or a function of tools by name"
    if not isinstance(choice, dict) or choice.get("type") != "function":
        raise values.wrong("tool_choice", expected, choice)
    where = "tool_choice.function" if nested else "tool_choice"
    if nested:
        choice = values.an_object(choice, "tool_choice", ("type", "function")).get("function")
    names = ("name",) if nested else ("type", "name")
    named = values.an_object(choice, where, names).get("name")
    if not isinstance(named, str) or named not in known:
        raise values.wrong(f"{where}.name", "a function of tools", named)
    return named


def _function(value: object, name: str, nested: bool) -> tuple[Mapping[str, Any], Function]:
    sort = value.get("type") if isinstance(value, dict) else None
    if sort != "function":
        raise values.wrong(f"{name}.type", "function", sort)
    known = ("name", "description", "parameters", "strict")
    described = values.an_object(value, name, ("type", "function") if nested else ("type", *known))
    described.pop("type")
    if nested:
        name = f"{name}.function"
        described = values.an_object(described.get("function"), name, known)
    called, strict = values.described(described, name)
    described.pop("strict", None)
    parameters = described.get("parameters", NO_ARGUMENTS)
    if isinstance(parameters, dict) and not parameters:
        parameters = NO_ARGUMENTS
    if not isinstance(parameters, dict) or parameters.get("type") != "object":
        raise values.wrong(f"{name}.parameters", "a schema of the type object", parameters)
    grammar = grammar_of(parameters, f"{name}.parameters", strict=strict)
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
    function = values.an_object(given.get("function"), f"{name}.function", ("name", "arguments"))
    return _read_call(given.get("id"), f"{name}.id", function, f"{name}.function")


def call_item(given: Mapping[str, Any], name: str) -> ToolCall:
    """A call as /v1/responses has it.

    Raises:
        ApiError: it is none.
    """
    return _read_call(given.get("call_id"), f"{name}.call_id", given, name)


def _is_deeper(value: object, most: int) -> bool:
    level: list[Any] = [value]
    for _ in range(most + 1):
        inside = [list(one.values()) if isinstance(one, dict) else one for one in level]
        level = [part for one in inside if isinstance(one, list) for part in one]
    return bool(level)


def _read_call(number: object, named: str, function: Mapping[str, Any], name: str) -> ToolCall:
    known = values.text(number, named, 256)
    called = values.identifier(function.get("name"), f"{name}.name")
    text = values.text(function.get("arguments"), f"{name}.arguments", LONGEST_ARGUMENTS)
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or _is_deeper(arguments, DEEPEST_ARGUMENTS):
        expected = f"a JSON object of at most {DEEPEST_ARGUMENTS} levels as text"
        raise values.wrong(f"{name}.arguments", expected, text)
    return ToolCall(known, called, arguments)

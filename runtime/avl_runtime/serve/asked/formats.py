"""What form an answer shall have: text, any JSON object, or JSON of a schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from avl_runtime.generate.grammars import Grammar, GrammarError, json_grammar
from avl_runtime.serve.asked import values
from avl_runtime.serve.errors import refused

SCHEMA: Final = ("name", "description", "schema", "strict")
ANY_OBJECT: Final = {"type": "object"}
TEXT: Final = {"type": "text"}


@dataclass(frozen=True, slots=True)
class Format:
    """The form of an answer.

    Attributes:
        told: as the client wrote it.
        grammar: what it is held to; None for text.
    """

    told: Mapping[str, Any] = field(default_factory=TEXT.copy)
    grammar: Grammar | None = None


def format_of(value: object, name: str, inside: str | None) -> Format:
    """Read `response_format`, or `text.format`.

    Args:
        inside: the name under which a schema has its own; None where it lies beside the type.

    Raises:
        ApiError: it is neither, or its schema cannot be used.
        MissingError: llguidance is not installed.
    """
    sort = value.get("type") if isinstance(value, dict) else None
    if sort == "text":
        return Format(values.an_object(value, name, ("type",)))
    if sort == "json_object":
        told = values.an_object(value, name, ("type",))
        return Format(told, grammar_of(ANY_OBJECT, name, strict=True))
    if sort != "json_schema":
        expected = "an object of the type text, json_object or json_schema"
        raise values.wrong(name, expected, value if sort is None else sort)
    told = given = values.an_object(value, name, ("type", *([inside] if inside else SCHEMA)))
    if inside is not None:
        name = f"{name}.{inside}"
        given = values.an_object(given.get(inside), name, SCHEMA)
    _, strict = values.described(given, name)
    schema = given.get("schema", ANY_OBJECT)
    return Format(told, grammar_of(schema, f"{name}.schema", strict=strict))


def grammar_of(schema: object, name: str, *, strict: bool) -> Grammar:
    """What a client's schema allows.

    Args:
        strict: refuse keywords that cannot be held to.

    Raises:
        ApiError: it cannot be used.
        MissingError: llguidance is not installed.
    """
    try:
        return json_grammar(schema, name, strict=strict)
    except GrammarError as error:
        raise refused(str(error), name) from None

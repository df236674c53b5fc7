"""Arguments of calls that are written one by one between tags, as GLM does: their grammar, and how
they are told as JSON while they come.

Texts stand between the tags as they are, all else as JSON. So a property must be one of the two,
and which it is its schema says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from avl_plugins.errors import quoted
from avl_runtime.generate.grammars import OWN, Grammar, GrammarError, json_grammar, schema_of
from avl_runtime.prompts.calls import KEY, VALUE

Schema = Mapping[str, Any]
TEXT: Final = "string"
TYPES: Final = frozenset(("object", "array", "number", "boolean", "null", TEXT))
# What a schema may say of a text beside what it is.
NOTES: Final = frozenset(("description", "title", "default", "examples", "deprecated", OWN))
WHOLE: Final = frozenset(("type", "properties", "required", "additionalProperties", "$defs"))
DEEPEST: Final = 16  # references behind one another
# What stands between two tags, where the second is spelled in letters, and where it is a token.
TAGGED: Final = (
    r"ANY: /(.|\n)*/",
    rf"UNCLOSED: /(.|\n)*/ & ~/(.|\n)*<\/{VALUE}>(.|\n)*/",
)


@dataclass(frozen=True, slots=True)
class Property:
    """An argument of a function.

    Attributes:
        schema: what it may be, which names no other place.
        is_text: whether it stands between tags as it is.
        must: whether it is in every call.
    """

    name: str
    schema: Schema
    is_text: bool
    must: bool


def properties_of(function: str, arguments: Grammar) -> list[Property]:
    """A function's arguments in their order.

    Args:
        arguments: as `json_grammar` makes it of the function's parameters.

    Raises:
        GrammarError: calls between tags cannot say what they may be.
    """
    whole = schema_of(arguments)
    own = whole.get(OWN, {})
    strict = not own.get("lenient", False)
    told = f"tools: function {function}"
    more = [key for key in whole if strict and key not in WHOLE | NOTES | {"definitions"}]
    beside = [key for key in ("$ref", "allOf", "anyOf", "oneOf") if key in whole] or more
    if beside:
        raise GrammarError(
            f"{told}: expected parameters of type, properties, required and additionalProperties, "
            f"as this model writes arguments one by one, found {quoted(beside[0])}; leave it out"
        )
    listed, required = whole.get("properties", {}), whole.get("required", [])
    unknown = [name for name in required if name not in listed]
    if unknown:
        raise GrammarError(
            f"{told}: expected required arguments that properties has, found {quoted(unknown[0])}; "
            "describe it there"
        )
    return [
        _property(f"{told}: argument {quoted(name)}", name, schema, whole, name in required)
        for name, schema in listed.items()
    ]


def _property(told: str, name: str, schema: Any, whole: Schema, must: bool) -> Property:
    if _closed(KEY) in name:
        raise GrammarError(f"{told}: expected a name without {_closed(KEY)}; give it another")
    types = _types(schema, whole)
    if TEXT in types and types != {TEXT}:
        found = " or ".join(sorted(types)) if types < TYPES else "any type"
        raise GrammarError(
            f"{told}: expected a type that is string alone or has no string, as this model writes "
            f"texts without quotation marks, found {found}; name one type"
        )
    return Property(name, schema, types == {TEXT}, must)


def _types(schema: Any, whole: Schema, depth: int = 0) -> frozenset[str]:
    """What JSON a schema allows, or more."""
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        return TYPES
    found = TYPES
    if "$ref" in schema:
        found &= _types(_referred(schema["$ref"], whole), whole, depth + 1)
    if "type" in schema:
        named = schema["type"]
        types = set([named] if isinstance(named, str) else named)
        found &= {"number" if one == "integer" else one for one in types}
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if listed is not None:
        found &= {_type_of(one) for one in listed}
    for several in ("anyOf", "oneOf"):
        if several in schema:
            found &= frozenset().union(*(_types(one, whole, depth + 1) for one in schema[several]))
    for one in schema.get("allOf", ()):
        found &= _types(one, whole, depth + 1)
    return found


def _referred(place: Any, whole: Schema) -> Any:
    """What `#/$defs/NAME` and the like name, or what allows anything."""
    found: Any = whole
    for part in str(place).removeprefix("#").split("/")[1:]:
        found = found.get(part.replace("~1", "/").replace("~0", "~"), {})
    return found


def _type_of(value: object) -> str:
    if isinstance(value, bool):  # a number to Python
        return "boolean"
    kinds = {str: TEXT, int: "number", float: "number", type(None): "null", list: "array"}
    return kinds.get(type(value), "object")


def rules(
    name: str, arguments: Grammar, function: str, line: str, literal: Callable[[str], str]
) -> Iterator[str]:
    """Rules in Lark's syntax for a function and its arguments up to the end of the call.

    Args:
        name: of the rule.
        line: what stands behind each part.
        literal: a text, as `Grammars.literal` writes it.

    Raises:
        GrammarError: as in `properties_of`.
    """
    whole, parts = schema_of(arguments), []
    for at, one in enumerate(properties_of(function, arguments)):
        value = f"{name}_{at}"
        begins = literal(f"<{KEY}>{one.name}{_closed(KEY)}{line}<{VALUE}>")
        parts.append(value if one.must else f"{value}?")
        ends = literal(f"{_closed(VALUE)}{line}")
        if not one.is_text:
            yield f"{value}: {begins} {value}_json {ends}"
            yield f"{value}_json: %json {json.dumps(_alone(one.schema, whole))}"
            continue
        texts = _listed(one, whole, function)
        if texts is not None:
            yield f"{value}: {begins} ({' | '.join(map(literal, texts))}) {ends}"
        elif literal(_closed(VALUE)).startswith('"'):  # an end that is spelled
            yield f"{value}: {begins} {value}_text" + (f" {literal(line)}" if line else "")
            yield f"{value}_text[lazy]: ANY {json.dumps(_closed(VALUE))}"
        else:
            yield f"{value}: {begins} UNCLOSED {ends}"
    yield " ".join([f"{name}:", literal(function + line), *parts, literal("</tool_call>")])


def _listed(one: Property, whole: Schema, function: str) -> list[str] | None:
    """The texts that an argument may be, None for any.

    Raises:
        GrammarError: it must be held to something else.
    """
    schema, told = one.schema, f"tools: function {function}: argument {quoted(one.name)}"
    for _ in range(DEEPEST):
        if "$ref" not in schema:
            break
        schema = _referred(schema["$ref"], whole)
    found = [schema["const"]] if "const" in schema else schema.get("enum")
    others = [key for key in schema if key not in NOTES | {"type", "enum", "const"}]
    if others and not whole.get(OWN, {}).get("lenient", False):
        raise GrammarError(
            f"{told}: expected a text with enum, const or nothing to hold it to, as this model "
            f"writes it without quotation marks, found {quoted(others[0])}; leave it out, or strict"
        )
    texts = None if found is None else [text for text in found if isinstance(text, str)]
    if any(_closed(VALUE) in text for text in texts or ()):
        raise GrammarError(f"{told}: expected texts without {_closed(VALUE)}; change them")
    return texts


def _alone(schema: Schema, whole: Schema) -> Any:
    """An argument's schema as one of its own: with what references in it name."""
    kept = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
    strict = not whole.get(OWN, {}).get("lenient", False)
    return schema_of(json_grammar({**schema, **kept}, strict=strict))


def _closed(tag: str) -> str:
    return f"</{tag}>"

"""Arguments of calls that are written one by one between tags, as GLM does, and their grammar.

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
from avl_runtime.prompts.calls import KEY, VALUE, CallForm

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
        schema: what it may be; `$ref` in it is of the whole.
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
    listed, required = whole.get("properties", {}), _several(whole, "required", told)
    if not isinstance(listed, Mapping):
        raise GrammarError(f"{told}: expected an object as properties, found {quoted(listed)}")
    unknown = [name for name in required if name not in list(listed)]
    if unknown:
        raise GrammarError(
            f"{told}: expected required arguments that properties has, found {quoted(unknown[0])}; "
            "describe it there"
        )
    types, found = _Types(whole), []
    for name, schema in listed.items():
        argument = f"{told}: argument {quoted(name)}"
        if _closed(KEY) in name:
            raise GrammarError(
                f"{argument}: expected a name without {_closed(KEY)}; give it another"
            )
        is_text = types.is_text(argument, schema)
        found.append(Property(name, schema, is_text, name in required))
    return found


class _Types:
    """What types of JSON the parts of a schema allow; what `$ref` names is looked at once."""

    def __init__(self, whole: Schema) -> None:
        self._whole = whole
        self._known: dict[str, frozenset[str]] = {}

    def is_text(self, told: str, schema: Any) -> bool:
        """Whether an argument is a text in any case; else it is none.

        Raises:
            GrammarError: it may be either.
        """
        types = self._of(told, schema, 0)
        if TEXT in types and types != {TEXT}:
            found = " or ".join(sorted(types)) if types < TYPES else "any type"
            raise GrammarError(
                f"{told}: expected a type that is string alone or has no string, as this model "
                f"writes texts without quotation marks, found {found}; name one type"
            )
        return types == {TEXT}

    def _of(self, told: str, schema: Any, depth: int) -> frozenset[str]:
        """Those that it allows, or more."""
        if not isinstance(schema, Mapping) or depth > DEEPEST:
            return TYPES
        found = TYPES
        if "$ref" in schema:
            place = str(schema["$ref"])
            if place not in self._known:
                self._known[place] = TYPES  # as long as it is looked at, should it name itself
                referred = _referred(place, self._whole)
                self._known[place] = self._of(told, referred, depth + 1)
            found &= self._known[place]
        if "type" in schema:
            named = schema["type"]
            types = [named] if isinstance(named, str) else _several(schema, "type", told)
            found &= {"number" if one == "integer" else str(one) for one in types}
        listed = _constants(schema, told)
        if listed is not None:
            found &= {_type_of(one) for one in listed}
        for key in ("anyOf", "oneOf"):
            if key in schema:
                parts = (self._of(told, one, depth + 1) for one in _several(schema, key, told))
                found &= frozenset().union(*parts)
        for one in _several(schema, "allOf", told):
            found &= self._of(told, one, depth + 1)
        return found


def _several(schema: Schema, key: str, told: str) -> list[Any]:
    """What a schema lists under a keyword."""
    found = schema.get(key, [])
    if not isinstance(found, list):
        raise GrammarError(f"{told}: expected a list as {key}, found {quoted(found)}; write one")
    return found


def _constants(schema: Schema, told: str) -> list[Any] | None:
    """All that a schema allows, None where it does not list it."""
    if "const" in schema:
        return [schema["const"]]
    return _several(schema, "enum", told) if "enum" in schema else None


def _referred(place: Any, whole: Schema) -> Any:
    """What `#/$defs/NAME` and the like name; None where that is nothing."""
    found: Any = whole
    for part in str(place).removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _type_of(value: object) -> str:
    if isinstance(value, bool):  # a number to Python
        return "boolean"
    kinds = {str: TEXT, int: "number", float: "number", type(None): "null", list: "array"}
    return kinds.get(type(value), "object")


def rules(
    name: str, arguments: Grammar, function: str, form: CallForm, literal: Callable[[str], str]
) -> Iterator[str]:
    """Rules in Lark's syntax for a function and its arguments up to the end of the call.

    Args:
        name: of the rule.
        form: one that has a line behind each part.
        literal: a text, as `Grammars.literal` writes it.

    Raises:
        GrammarError: as in `properties_of`.
    """
    whole, line, parts = schema_of(arguments), form.line or "", []
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
    yield " ".join([f"{name}:", literal(function + line), *parts, literal(form.end)])


def _listed(one: Property, whole: Schema, function: str) -> list[str] | None:
    """The texts that an argument may be, None for any.

    Raises:
        GrammarError: it must be held to something else.
    """
    told = f"tools: function {function}: argument {quoted(one.name)}"
    schema, texts = one.schema, None
    for _ in range(DEEPEST):
        others = [key for key in schema if key not in NOTES | {"type", "enum", "const", "$ref"}]
        if others and not whole.get(OWN, {}).get("lenient", False):
            raise GrammarError(
                f"{told}: expected a text with enum, const or nothing to hold it to, as this model "
                f"writes it without quotation marks, found {quoted(others[0])}; leave it out, or "
                "strict"
            )
        listed = _constants(schema, told)
        if listed is not None:
            texts = [text for text in listed if texts is None or text in texts]
        if "$ref" not in schema:
            break
        place, schema = schema["$ref"], _referred(schema["$ref"], whole)
        if not isinstance(schema, Mapping):
            raise GrammarError(f"{told}: expected a schema as {quoted(place)}, found none; add it")
    if texts is None:
        return None
    texts = [text for text in texts if isinstance(text, str)]
    if any(_closed(VALUE) in text for text in texts):
        raise GrammarError(f"{told}: expected texts without {_closed(VALUE)}; change them")
    if not texts:
        raise GrammarError(f"{told}: expected a text that it may be, found none; add one to enum")
    return texts


def _alone(schema: Schema, whole: Schema) -> Any:
    """An argument's schema as one of its own: with what references in it name."""
    kept = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
    strict = not whole.get(OWN, {}).get("lenient", False)
    return schema_of(json_grammar({**schema, **kept}, strict=strict))


def _closed(tag: str) -> str:
    return f"</{tag}>"

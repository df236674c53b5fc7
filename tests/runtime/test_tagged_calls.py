"""Calls whose arguments stand one by one between tags, as GLM writes them."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from avl_runtime import LVLM
from avl_runtime.generate.call_grammar import Function, call_grammar
from avl_runtime.generate.call_reader import CallReader
from avl_runtime.generate.grammars import GrammarError, Grammars, json_grammar
from avl_runtime.generate.sampling import Sampler
from avl_runtime.generate.tagged_calls import properties_of
from avl_runtime.prompts.calls import GLM, GLM_DENSE, KEY, VALUE, CallForm, ToolCall

MARKS = tuple(f"<{end}{tag}>" for tag in ("tool_call", KEY, VALUE) for end in ("", "/"))
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "description": "Where."},
        "kind": {"$ref": "#/$defs/kind"},
        "most": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 2},
    },
    "required": ["place", "most"],
    "additionalProperties": False,
    "$defs": {"kind": {"enum": ["red", "green"]}},
}
FIND = Function("find", json_grammar(SCHEMA))
STOP = Function("stop", json_grammar({"type": "object", "properties": {}}))
TEXTS = {"find": ["place", "kind"], "stop": []}


def told(form: CallForm, text: str, size: int) -> tuple[str, list[list[str]]]:
    """A reply's own text, and names and arguments of its calls, given so many letters at a time."""
    reader, said, calls = CallReader(form, TEXTS), "", []
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    for at, part in enumerate([*parts, ""]):
        for piece in reader.push(part, last=at == len(parts)):
            if piece.name is not None:
                calls.append([piece.name, ""])
            elif piece.call is None:
                said += piece.text
            else:
                calls[piece.call][1] += piece.text
    assert reader.calls == len(calls)
    return said, calls


VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda text: "</arg_value>" not in text
)
FOUND = st.fixed_dictionaries(
    {"place": VALUES, "most": st.integers(0, 99)},
    optional={
        "kind": st.sampled_from(["red", "green"]),
        "tags": st.lists(st.sampled_from(['a"b', "</arg_value>", "\\", "é"]), max_size=2),
    },
)


@settings(deadline=None)
@given(st.sampled_from([GLM, GLM_DENSE]), st.lists(FOUND, max_size=2), st.integers(1, 30))
def test_what_a_template_writes_is_read_as_the_same_arguments(
    form: CallForm, listed: list[dict[str, Any]], size: int
) -> None:
    calls = [ToolCall("x", "find", one) for one in listed] + [ToolCall("x", "stop", {})]
    text = form.between.join(form.written(call, (", ", ": ")) for call in calls)
    said, found = told(form, f"I look.\n{text}", size)
    assert said == "I look."
    assert [(name, json.loads(arguments)) for name, arguments in found] == [
        (call.name, call.arguments) for call in calls
    ]


@pytest.mark.parametrize("special", [None, False, True])
@pytest.mark.parametrize("form", [GLM, GLM_DENSE])
def test_whatever_a_model_would_say_its_calls_are_right(
    tiny: LVLM, form: CallForm, special: bool | None
) -> None:
    """Tags are spelled, tokens, or special tokens; logits are drawn."""
    tokenizer = Tokenizer.from_str(tiny.processor.tokenizer.to_str())
    if special is not None:
        tokenizer.add_tokens([AddedToken(word, special=special) for word in MARKS])
    (eos,) = tiny.package.manifest.tokens.eos
    size = tokenizer.get_vocab_size()
    grammars = Grammars(tokenizer, size, [eos])
    grammar = call_grammar(form, [FIND, STOP], grammars.literal, must=True, several=True)
    names = set()
    closing = tokenizer.encode("</arg_value>", add_special_tokens=False).ids
    for seed in range(6):
        draw, said = np.random.default_rng(seed), []
        sampler = Sampler(
            temperature=1.0, seed=seed, eos=[eos], constraint=grammars.constraint(grammar)
        )
        while eos not in said:
            logits = draw.normal(0, 2, size)
            logits[eos] += 9
            begun = max(k for k in range(len(closing)) if closing[:k] == said[len(said) - k :])
            if begun or draw.random() < 0.05:  # a text ends where the tag is there whole
                logits[closing[begun]] += 99
            said.append(sampler(logits, said, len(said)))
            assert len(said) < 3000
        text = tokenizer.decode(said[:-1], skip_special_tokens=False)
        if special:
            text = re.sub(r" (?=</?(tool_call|arg_))|(?<=>) ", "", text)
        before, calls = told(form, text, 7)
        assert before == "" and calls
        for name, arguments in calls:
            names.add(name)
            jsonschema.validate(
                json.loads(arguments), {"find": SCHEMA, "stop": {"const": {}}}[name]
            )
    assert names == {"find", "stop"}


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("<tool_call>find", []),
        ("<tool_call>find\n<arg_key>pla", [["find", ""]]),
        (
            '<tool_call>find\n<arg_key>place</arg_key>\n<arg_value>a"b',
            [["find", '{"place": "a\\"b']],
        ),
        ("<tool_call>find\n<arg_key>most</arg_key>\n<arg_value>1", [["find", '{"most": 1']]),
    ],
)
def test_what_is_cut_is_told_as_far_as_it_came(text: str, calls: list[list[str]]) -> None:
    for size in (1, 100):
        assert told(GLM, text, size) == ("", calls)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"properties": {"x": {"type": ["string", "null"]}}}, "argument 'x'.*found null or string"),
        ({"properties": {"x": {"description": "y"}}}, "argument 'x'.*found any type"),
        ({"properties": {"x": {"enum": ["a", 1]}}}, "argument 'x'.*found number or string"),
        (
            {"properties": {"x": {"type": "string", "maxLength": 3}}},
            "argument 'x'.*found 'maxLength'",
        ),
        ({"properties": {"x": {"enum": ["</arg_value>"]}}}, "argument 'x'.*without </arg_value>"),
        ({"properties": {"</arg_key>": {"type": "string"}}}, "without </arg_key>"),
        ({"required": ["y"]}, "function find: .*found 'y'"),
        ({"anyOf": [{}]}, "function find: .*found 'anyOf'"),
        ({"minProperties": 1, "properties": {}}, "function find: .*found 'minProperties'"),
        ({"properties": []}, "function find: expected an object as properties"),
        ({"required": 5}, "function find: expected a list as required, found 5"),
        ({"required": [["y"]]}, "function find: .*found \\['y'\\]"),
        ({"properties": {"x": {"type": 5}}}, "argument 'x': expected a list as type, found 5"),
        ({"properties": {"x": {"enum": "a"}}}, "argument 'x': expected a list as enum"),
        ({"properties": {"x": {"anyOf": 5}}}, "argument 'x': expected a list as anyOf"),
        ({"properties": {"x": {"allOf": {}}}}, "argument 'x': expected a list as allOf"),
        ({"properties": {"x": {"$ref": "#/type/y"}}}, "argument 'x'.*found any type"),
        ({"properties": {"x": {"type": "string", "$ref": "#/y"}}}, "'x': expected a schema as"),
        (
            {
                "properties": {"x": {"$ref": "#/$defs/y", "const": "a"}},
                "$defs": {"y": {"const": "b"}},
            },
            "argument 'x': expected a text that it may be, found none",
        ),
    ],
)
def test_what_the_form_cannot_say_is_refused_by_name(schema: dict[str, Any], says: str) -> None:
    function = Function("find", json_grammar({"type": "object", **schema}))
    with pytest.raises(GrammarError, match=says):
        call_grammar(GLM, [function], json.dumps, must=True, several=False)


def test_what_stands_beside_a_reference_counts_too() -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/y", "enum": ["b", "c", "d"]}},
        "$defs": {"y": {"$ref": "#/$defs/z"}, "z": {"enum": ["a", "b", "c"]}},
    }
    function = Function("find", json_grammar(schema))
    text = call_grammar(GLM, [function], json.dumps, must=True, several=False).source
    assert '("b" | "c")' in text


def test_references_to_references_are_looked_at_once() -> None:
    """Each of seven names the next twenty times: 20 ** 7 ways."""
    places = [{"anyOf": [{"$ref": f"#/$defs/{at + 1}"}] * 20} for at in range(7)]
    named = {str(at): one for at, one in enumerate([*places, {"type": "integer"}])}
    schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/0"}}, "$defs": named}
    (one,) = properties_of("find", json_grammar(schema))
    assert not one.is_text
    long = {str(at): {"$ref": f"#/$defs/{at + 1}"} for at in range(1500)}
    with pytest.raises(GrammarError, match="found any type"):
        properties_of("find", json_grammar(schema | {"$defs": long}))


def test_without_strict_a_text_is_held_to_less() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "maxLength": 3}}}
    (one,) = properties_of("find", json_grammar(schema, strict=False))
    assert one.is_text and not one.must
    text = call_grammar(
        GLM,
        [Function("find", json_grammar(schema, strict=False))],
        json.dumps,
        must=True,
        several=False,
    ).source
    assert "tool_0_0_text[lazy]" in text

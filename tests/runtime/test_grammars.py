"""Replies that are held to a schema: they parse, validate, and are the same with drafts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avl_plugins.errors import AvlError
from avl_runtime import LVLM, Options
from avl_runtime.cli.run import main
from avl_runtime.generate.grammars import LONGEST_SCHEMA, GrammarError, json_grammar
from avl_runtime.generate.sampling import Sampler
from avl_runtime.tasks import sample

(COLOUR, COUNT) = ({"enum": ["red", "green"]}, {"type": "integer", "minimum": 0, "maximum": 99})
THING = {
    "type": "object",
    "properties": {"colour": COLOUR, "count": COUNT},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
ONE = sample("caption", "held-out", 44)
words = st.text('ab"\\\n{}é', max_size=4)


def listed(one: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(lambda item, most: {"type": "array", "items": item, "maxItems": most}, one,
                     st.integers(0, 3))  # fmt: skip


@st.composite
def objects(draw: st.DrawFn, one: st.SearchStrategy[Any]) -> dict[str, Any]:
    inside = draw(st.dictionaries(words, one, max_size=3))
    needed = draw(st.lists(st.sampled_from(sorted(inside)), unique=True)) if inside else []
    others = {"patternProperties": {"^x{1,2}$": {"type": "null"}}} if draw(st.booleans()) else {}
    bounds = {"required": needed, "additionalProperties": False}
    return {"type": "object", "properties": inside} | others | bounds


leaves = (
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["null", "boolean"]}])
    | st.builds(
        lambda value: {"const": value},
        words | st.integers(-(1 << 53), 1 << 53) | st.lists(words, max_size=2),
    )
    | st.builds(lambda some: {"enum": some}, st.lists(words, min_size=1, max_size=3))
    | st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 5))
    | st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-99, 99),
        st.integers(0, 2000),
    )
    | st.just({"type": "integer", "multipleOf": 7, "minimum": 7, "maximum": 70})
    | st.just({"type": "string", "pattern": "^[a-c]{2}(x|yz)$"})
    | st.just({"$ref": "#/$defs/thing"})
)
inner = st.recursive(
    leaves,
    lambda one: listed(one) | objects(one) | st.builds(lambda a, b: {"anyOf": [a, b]}, one, one),
    max_leaves=5,
)
schemas = objects(inner).map(lambda found: found | {"$defs": {"thing": THING}})


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(schemas, st.integers(0, 1 << 30))
def test_whatever_a_model_would_say_it_says_what_the_schema_allows(
    tiny: LVLM, schema: dict[str, Any], seed: int
) -> None:
    """Logits are drawn; at some steps the sampler first looks ahead, as drafts do."""
    eos = tiny.package.manifest.tokens.eos
    grammar = json_grammar(schema)
    draw = np.random.default_rng(seed)
    constraint = tiny.loaded.grammars.constraint(grammar)
    sampler = Sampler(temperature=1.0, seed=seed, eos=eos, constraint=constraint)
    said: list[int] = []
    while not said or said[-1] not in eos:
        assert len(said) < 4000, tiny.processor.decode(said)
        if draw.random() < 0.1:
            guesses: list[int] = []
            ahead = sampler.ahead()
            while len(guesses) < 3 and not (guesses and guesses[-1] in eos):
                logits = draw.normal(0, 3, tiny.package.manifest.dims.vocab_size)
                guesses.append(ahead(logits, [*said, *guesses], len(said) + len(guesses)))
        logits = draw.normal(0, 3, tiny.package.manifest.dims.vocab_size)
        if draw.random() < 0.05:
            anew = tiny.loaded.grammars.constraint(grammar).allowed(said)
            np.testing.assert_array_equal(constraint.allowed(said), anew)
        said.append(sampler(logits, [5, *said], len(said)))
    jsonschema.Draft202012Validator(schema).validate(json.loads(tiny.processor.decode(said)))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3}], ids=["greedy", "drawn"])
def test_drafts_change_no_token(tiny: LVLM, options: dict[str, Any]) -> None:
    schema = {"type": "array", "items": THING, "minItems": 1, "maxItems": 1}
    given = {"max_new_tokens": 400, "json_schema": schema} | options
    wanted = tiny.generate(ONE.prompt, [ONE.image], policy="dense", **given)
    assert wanted.finish_reason == "eos"
    jsonschema.validate(json.loads(wanted.text), schema)
    drafted = 0
    for policy, lookup in (("dense", 15), ("avl:exact,core=0.1,n=8", 3)):
        found = tiny.generate(ONE.prompt, [ONE.image], policy=policy, prompt_lookup=lookup, **given)
        assert found.token_ids == wanted.token_ids
        drafted += found.stats.accepted
    assert drafted > 0


def test_requests_of_a_batch_have_their_own(tiny: LVLM) -> None:
    """One is cut, one goes on in a conversation, one is free."""
    cut = tiny.generate("What?", json_schema=THING, max_new_tokens=5)
    assert cut.finish_reason == "length" and cut.text.startswith("{")
    chat = tiny.chat()
    for _ in range(2):
        found = chat.send("What?", json_schema=THING, max_new_tokens=200)
        jsonschema.validate(json.loads(found.text), THING)
    usual = tiny.generate("What?", max_new_tokens=5)
    requests = [
        tiny.request("What?", max_new_tokens=200, json_schema=schema)
        for schema in (THING, None, {"type": "object", "additionalProperties": False})
    ]
    first, free, empty = tiny._results(requests)
    jsonschema.validate(json.loads(first.text), THING)
    assert free.text.startswith(usual.text) and json.loads(empty.text) == {}


deep: dict[str, Any] = {}
for _ in range(40):
    deep = {"type": "object", "properties": {"a": deep}}
several = {"anyOf": [{"type": "object", "properties": {f"p{j}": COUNT}, "required": [f"p{j}"]}
                     for j in range(8)]}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (3, "found 3"),
        (deep, "levels"),
        ({"enum": ["a" * LONGEST_SCHEMA]}, "bytes"),
        ({"enum": [float("nan")]}, "JSON cannot hold"),
        ({"x-guidance": {"item_separator": "x"}}, "x-guidance"),
        ({"allOf": [{"multipleOf": 997}, {"multipleOf": 0.991}]}, "common multiple"),
        ({"multipleOf": 1e300}, "digits"),
        ({"type": "number", "multipleOf": True}, "multipleOf"),
        ({"const": [(1 << 53) + 1]}, "found 9007199254740993"),
        ({"allOf": [several] * 8}, "schema too large"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "thing"}, "thing"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "file:///etc/passwd"}, "file:///etc/passwd"),
        ({"$ref": "#"}, "allows nothing, as where a $ref leads to itself"),
        ({"enum": []}, "empty"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "greater"),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_refused_in_a_sentence(
    tiny: LVLM, schema: Any, words: str
) -> None:
    with pytest.raises(GrammarError) as refused:
        tiny.request("What?", json_schema=schema)
    text = str(refused.value)
    assert words in text and text.startswith("json_schema: expected ") and "found" in text
    assert len(text) < 400 and "\n" not in text


def test_a_state_that_needs_too_much_ends_its_request_alone(tiny: LVLM) -> None:
    """The parser has a row for each of many optional properties only once the object begins."""
    many = {"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(900)}}
    with pytest.raises(GrammarError, match=r"json_schema: expected .* found: .*items"):
        tiny.generate("What?", json_schema=many)


@pytest.mark.parametrize("name", ["min_length", "min_new_tokens", "no_repeat_ngram_size"])
def test_what_keeps_an_answer_from_its_end_is_refused_beside_a_schema(
    tiny: LVLM, name: str
) -> None:
    with pytest.raises(AvlError, match=f"{name}: expected none"):
        tiny.request("What?", json_schema=THING, max_new_tokens=9, **{name: 3})
    assert Options(json_schema=THING).json_schema == THING


def test_the_command_line_takes_a_file(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(THING))
    told = [str(tiny_package), "What?", "--quiet", "--json-schema", str(file)]
    assert main(told) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), THING)
    file.write_text("{")
    with pytest.raises(SystemExit, match="2"):
        main(told)
    assert "expected a file with a JSON schema" in capsys.readouterr().err

"""Calls of functions: how templates write them, how replies are held to them and read."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from avl_runtime import LVLM
from avl_runtime.generate.call_grammar import Function, call_grammar
from avl_runtime.generate.call_reader import CallReader
from avl_runtime.generate.grammars import Grammar, Grammars, json_grammar
from avl_runtime.generate.sampling import Sampler
from avl_runtime.prompts.calls import GLM, GLM_DENSE, HERMES, MISTRAL, CallForm
from avl_runtime.prompts.chat_template import ChatTemplate, TemplateError
from avl_runtime.prompts.messages import conversation
from avl_runtime.prompts.processor import Processor
from support.tools import (
    FIND,
    GLM_DENSE_TEMPLATE,
    GLM_TEMPLATE,
    HERMES_TEMPLATE,
    MISTRAL_TEMPLATE,
    STOP,
    TOOLS,
)

WORDS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]")
PLACES = {"image": "<image>"}
SAID: list[dict[str, Any]] = [
    {"role": "user", "content": "Find some."},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {"id": "abcdefgh1", "type": "function",
             "function": {"name": "find", "arguments": {"colour": "red", "most": 3}}},
        ],
    },
    {"role": "tool", "tool_call_id": "abcdefgh1", "content": "none there"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (HERMES_TEMPLATE, HERMES),
        (MISTRAL_TEMPLATE, MISTRAL),
        (GLM_TEMPLATE, GLM),
        (GLM_DENSE_TEMPLATE, GLM_DENSE),
    ],
)
def test_prompts_are_those_of_transformers(template: str, form: CallForm) -> None:
    ours = ChatTemplate(template, {}, PLACES)
    assert ours.call_form == form
    messages = conversation(SAID)
    assert (
        ours.render(messages, TOOLS)
        == render_jinja_template(
            [SAID], tools=TOOLS, chat_template=template, add_generation_prompt=True
        )[0][0]
    )
    assert [message.to_dict() for message in messages][1]["tool_calls"] == SAID[1]["tool_calls"]


def test_templates_without_a_place_for_tools_are_refused(tiny: LVLM) -> None:
    assert tiny.processor.call_form is None
    for said, tools in ((SAID[:1], TOOLS), (SAID, [])):
        with pytest.raises(TemplateError):
            tiny.processor.encode(said, tools=tools)
    forgetful = HERMES_TEMPLATE.replace("{{- message.content }}{{- '\\n</tool_resp", "{{- '</tool_")
    with pytest.raises(
        TemplateError, match="tools: expected a chat template that writes functions"
    ):
        ChatTemplate(forgetful, {}, PLACES).render(conversation(SAID), TOOLS)


def test_special_tokens_of_functions_are_ordinary_text(tiny: LVLM) -> None:
    manifest = dataclasses.replace(tiny.package.manifest, chat_template=HERMES_TEMPLATE)
    processor = Processor(manifest, tiny.processor.tokenizer)
    tools = [{"type": "function", "function": STOP | {"description": "a</s><image>b"}}]
    said = [*SAID[:1], SAID[1] | {"tool_calls": [
        {"id": "1", "function": {"name": "stop", "arguments": {"</s>": ["<image>"]}}}
    ]}, SAID[2] | {"content": "</s><image>"}]  # fmt: skip
    found = processor.encode(said, tools=tools).input_ids.tolist()
    (end,) = tiny.package.manifest.tokens.eos
    assert found.count(end) == 1  # the template's own, behind the answer
    assert tiny.package.manifest.image.token not in found


def one_of(tiny: LVLM, form: CallForm, **asked: Any) -> Grammar:
    functions = [
        Function(
            one["name"], json_grammar(one.get("parameters", {"type": "object", "maxProperties": 0}))
        )
        for one in (FIND, STOP)
    ]
    return call_grammar(form, functions, tiny.loaded.grammars.literal, **asked)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.booleans(), st.booleans(), st.sampled_from([HERMES, MISTRAL]), st.integers(0, 1 << 30))
def test_whatever_a_model_would_say_its_calls_are_right(
    tiny: LVLM, must: bool, several: bool, form: CallForm, seed: int
) -> None:
    """Logits are drawn, and the beginning of a call is made likely where it is none by itself."""
    (eos,) = tiny.package.manifest.tokens.eos
    grammar = one_of(tiny, form, must=must, several=several)
    constraint = tiny.loaded.grammars.constraint(grammar)
    sampler = Sampler(temperature=1.0, seed=seed, eos=[eos], constraint=constraint)
    draw, said = np.random.default_rng(seed), []
    wanted = tiny.processor.tokenizer.encode(f"a b{form.trigger}", add_special_tokens=False).ids
    while eos not in said:
        logits = draw.normal(0, 2, tiny.package.manifest.dims.vocab_size)
        if not must and len(said) < len(wanted):
            logits[wanted[len(said)]] += 99
        logits[eos] += 9
        said.append(sampler(logits, said, len(said)))
        assert len(said) < 2000
    text = tiny.processor.decode(said)
    pieces = CallReader(form).push(text, last=True)
    again = CallReader(form)
    in_parts = [piece for letter in text for piece in again.push(letter)] + again.push(
        "", last=True
    )
    calls: list[list[str]] = []
    for piece in pieces:
        if piece.name is not None:
            calls.append([piece.name, ""])
        elif piece.call is not None:
            calls[piece.call][1] += piece.text
    assert calls and (several or len(calls) == 1) and again.calls == len(calls)
    for part in (None, *range(len(calls))):
        whole = [
            "".join(one.text for one in some if one.call == part) for some in (pieces, in_parts)
        ]
        assert whole[0] == whole[1]
    for name, arguments in calls:
        schema = {"find": FIND["parameters"], "stop": {"const": {}}}[name]
        jsonschema.validate(json.loads(arguments), schema)
    assert "".join(piece.text for piece in pieces if piece.call is None) == (
        "" if must else text.split(form.trigger)[0].rstrip()
    )


@pytest.mark.parametrize("form", [HERMES, MISTRAL])
def test_marks_that_are_tokens_are_never_spelled(tiny: LVLM, form: CallForm) -> None:
    tokenizer = Tokenizer.from_str(tiny.processor.tokenizer.to_str())
    tokenizer.add_tokens([AddedToken(word, special=False) for word in WORDS[:2]])
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in WORDS[2:]])
    (eos,) = tiny.package.manifest.tokens.eos
    grammars = Grammars(tokenizer, tokenizer.get_vocab_size(), [eos])
    find = [Function("find", json_grammar(FIND["parameters"]))]
    call = f'{form.begin}find{form.middle}{{"colour": "red", "most": 3}}{form.end}'
    ids = tokenizer.encode(call, add_special_tokens=False).ids
    trigger = tokenizer.token_to_id(form.trigger)
    for must in (False, True):
        grammar = call_grammar(form, find, grammars.literal, must=must, several=True)
        constraint = grammars.constraint(grammar)
        first = np.flatnonzero(constraint.allowed([])).tolist()
        assert first == [trigger] if must else {trigger, eos, 40} <= set(first)
        for count, token in enumerate(ids):
            assert constraint.allowed(ids[:count])[token]
        assert constraint.allowed(ids)[eos] and not constraint.allowed(ids[:-1])[eos]
        spelled = [tokenizer.token_to_id(letter) for letter in form.trigger]
        if not must:  # what was spelled goes on as a call too
            assert not constraint.allowed(spelled)[eos] and constraint.allowed(spelled[:-1])[eos]
    assert tokenizer.decode(ids, skip_special_tokens=False).startswith(form.begin)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no call < tool_call> ", [(None, "no call < tool_call> ")]),
        (
            'x \n<tool_call>\n{"name": "f", "arguments": {"a": "b"',
            [(None, "x"), (0, "f"), (0, '{"a": "b"')],
        ),
        ('<tool_call>\n{"name": "f', []),
        ("a\n\n b ", [(None, "a\n\n b ")]),
    ],
)
def test_what_is_cut_is_told_as_far_as_it_came(text: str, told: list[Any]) -> None:
    pieces = CallReader(HERMES).push(text, last=True)
    assert [(piece.call, piece.name or piece.text) for piece in pieces] == told


def test_an_answer_may_be_json_where_it_calls_nothing(tiny: LVLM) -> None:
    grammar = one_of(tiny, HERMES, must=False, several=True, answer=json_grammar({"const": 5}))
    constraint = tiny.loaded.grammars.constraint(grammar)
    text = [tiny.processor.decode([int(token)]) for token in np.flatnonzero(constraint.allowed([]))]
    assert sorted(text) == ["5", "<"]

"""openai's clients have functions called: whole and streamed, by choice, and in what follows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from avl_runtime.serve.asked.fields import chat_request
from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.limits import Limits
from support.server import MODEL, ONE, Running, picture, said, started
from support.tools import FIND, GLM_TEMPLATE, HERMES_TEMPLATE, STOP, TOOLS, with_template

NAME, TAGGED = "tools", "tagged"
NAMED = {"type": "function", "function": {"name": "find"}}
QUESTION = [{"role": "user", "content": [picture(ONE.image), said("Find some.")]}]
ASKED: dict[str, Any] = {
    "model": NAME,
    "messages": QUESTION,
    "tools": TOOLS,
    "max_tokens": 400,
    "temperature": 1.2,
    "seed": 3,
    "logit_bias": {"2": 50},  # a reply ends where it may
}


@pytest.fixture(scope="module")
def served(tiny_package: Path) -> Iterator[Running]:
    package = with_template(tiny_package, HERMES_TEMPLATE, f"{NAME}.avl")
    other = with_template(tiny_package, GLM_TEMPLATE, f"{TAGGED}.avl")
    with started(package, str(other), "--backend", "ort-cpu") as running:
        yield running
    assert "Traceback" not in "".join(running.lines)


def checked(choice: Any) -> list[dict[str, Any]]:
    """The arguments of a choice's calls."""
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    found = []
    for call in choice.message.tool_calls:
        assert call.type == "function" and call.id.startswith("call_")
        found.append(json.loads(call.function.arguments))
        schema = {"find": FIND["parameters"], "stop": {"const": {}}}[call.function.name]
        jsonschema.validate(found[-1], schema)
    return found


def test_a_function_is_called_whole_and_streamed(served: Running) -> None:
    asked = ASKED | {"tool_choice": "required", "n": 2, "logprobs": True}
    with served.client() as client:
        whole = client.chat.completions.create(**asked)
        stream = client.chat.completions.create(**asked, stream=True)
        assert served.logged(whole._request_id)["finish"] == ["tool_calls"] * 2
        calls: list[dict[int, list[str]]] = [{}, {}]
        reasons = {}
        for chunk in stream:
            (choice,) = chunk.choices
            for call in choice.delta.tool_calls or ():
                if call.id is not None:
                    calls[choice.index][call.index] = [call.function.name, ""]
                calls[choice.index][call.index][1] += call.function.arguments
            reasons[choice.index] = choice.finish_reason
    assert reasons == {0: "tool_calls", 1: "tool_calls"}
    for choice in whole.choices:
        assert checked(choice)
        told = [[one.function.name, one.function.arguments] for one in choice.message.tool_calls]
        assert told == list(calls[choice.index].values())


def test_the_one_that_is_named_and_what_follows_it(served: Running) -> None:
    asked = ASKED | {"tool_choice": NAMED}

    async def by_the_helper() -> Any:
        async with (
            openai.AsyncOpenAI(**served.options) as client,
            client.chat.completions.stream(**asked) as stream,
        ):
            kinds = [event.type async for event in stream]
            assert "tool_calls.function.arguments.done" in kinds
            return await stream.get_final_completion()

    final = asyncio.run(by_the_helper()).choices[0]
    (arguments,) = checked(final)
    with served.client() as client:
        found = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
        assert checked(found) == [arguments] and found.message.tool_calls[0].function.name == "find"
        (call,) = found.message.tool_calls
        told = {"role": "tool", "tool_call_id": call.id, "name": "find", "content": "none are"}
        more = [*QUESTION, found.message.model_dump(exclude_none=True), told]
        after = client.chat.completions.create(
            **ASKED | {"messages": more, "tool_choice": "none", "max_tokens": 8}
        ).choices[0]
        assert after.message.tool_calls is None and after.finish_reason in ("stop", "length")
        counts = [
            json.loads(
                served.send("POST", "/tokenize", {"model": NAME, "messages": some} | rest)[2]
            )
            for some, rest in (
                (QUESTION, {}),
                (QUESTION, {"tools": TOOLS}),
                (more, {"tools": TOOLS}),
            )
        ]
    assert counts[0]["count"] < counts[1]["count"] < counts[2]["count"]


def test_arguments_one_by_one_are_told_as_json(served: Running) -> None:
    asked = ASKED | {"model": TAGGED, "tool_choice": NAMED}
    anything = {"type": "object", "properties": {"x": {}}}
    with served.client() as client:
        whole = client.chat.completions.create(**asked).choices[0]
        (arguments,) = checked(whole)
        with client.chat.completions.stream(**asked) as stream:
            parts = [
                one.delta.tool_calls
                for event in stream
                if event.type == "chunk"
                for one in event.chunk.choices
                if one.delta.tool_calls
            ]
            assert checked(stream.get_final_completion().choices[0]) == [arguments]
        assert len(parts) > 3
        (call,) = whole.message.tool_calls
        said = {"role": "tool", "tool_call_id": call.id, "content": "none are"}
        more = [*QUESTION, whole.message.model_dump(exclude_none=True), said]
        chosen = client.chat.completions.create(**ASKED | {"model": TAGGED, "messages": more})
        assert chosen.choices[0].finish_reason in ("stop", "length", "tool_calls")
        loose = [{"type": "function", "function": {"name": "find", "parameters": anything}}]
        with pytest.raises(openai.BadRequestError, match="function find: argument 'x'"):
            client.chat.completions.create(**asked | {"tools": loose})


def test_text_is_text_where_the_model_may_choose(served: Running) -> None:
    asked = ASKED | {"temperature": 0, "max_tokens": 12, "logit_bias": None}
    with served.client() as client:
        found = client.chat.completions.create(**asked).choices[0]
        stream = client.chat.completions.create(**asked, stream=True)
        told = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        cut = client.chat.completions.create(**ASKED | {"tool_choice": NAMED, "max_tokens": 40})
    assert found.message.content and found.message.tool_calls is None
    assert found.finish_reason in ("stop", "length")
    assert told.strip() == found.message.content.strip()
    choice = cut.choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls and choice.message.tool_calls[0].function.name == "find"


def test_models_without_tools_and_conversations_that_are_none(
    served: Running, server: Running
) -> None:
    with server.client() as client, pytest.raises(openai.BadRequestError, match="another model"):
        client.chat.completions.create(**ASKED | {"model": MODEL})
    loose = [*QUESTION, {"role": "tool", "tool_call_id": "x", "content": "y"}]
    with served.client() as client, pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ASKED | {"messages": loose})
    assert refused.value.param == "messages[1].tool_call_id"


DEEP = '{"a":' * 65 + "1" + "}" * 65
FLAT = [{"type": "function", **one["function"]} for one in TOOLS]


def test_responses_call_functions(served: Running) -> None:
    asked = {"model": NAME, "input": "Find some.", "max_output_tokens": 400, "tools": FLAT}
    asked |= {"tool_choice": {"type": "function", "name": "find"}, "temperature": 1.2}
    with served.client() as client:
        found = client.responses.create(**asked, extra_body={"seed": 4})
        (call,) = found.output
        assert call.type == "function_call" and call.name == "find"
        jsonschema.validate(json.loads(call.arguments), FIND["parameters"])
        assert found.status == "completed" and found.tools[0].name == "find"
        with client.responses.stream(**asked, extra_body={"seed": 4}) as stream:
            events = list(stream)
            (streamed,) = stream.get_final_response().output
        assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
        kinds = [event.type for event in events]
        assert "response.function_call_arguments.done" in kinds
        assert [event.sequence_number for event in events] == list(range(len(events)))
        told = {"type": "function_call_output", "call_id": call.call_id, "output": "none"}
        more = [{"role": "user", "content": "Find some."}, call.model_dump(), told]
        after = client.responses.create(model=NAME, input=more, tools=FLAT, max_output_tokens=3)
        plain = client.responses.create(model=NAME, input=more[:1], max_output_tokens=3)
    assert after.output[0].type == "message" and after.usage.input_tokens > plain.usage.input_tokens


def fields(**changes: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": FIND | changes}]}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"tools": 1}, "tools"),
        ({"tools": TOOLS * 65}, "tools"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        (fields(name="a b"), "tools[0].function.name"),
        (fields(description=1), "tools[0].function.description"),
        (fields(strict=1), "tools[0].function.strict"),
        (fields(parameters={"type": "array"}), "tools[0].function.parameters"),
        (fields(parameters={"type": "object", "not": {}, "x-guidance": {}}),
         "tools[0].function.parameters"),
        (fields(other=1), "tools[0].function.other"),
        ({"tool_choice": "required"}, "tools"),
        ({"tools": TOOLS, "tool_choice": "other"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
         "tool_choice.function.name"),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"tools": TOOLS, "skip_special_tokens": True}, "skip_special_tokens"),
        ({"tools": [{"type": "function", "function": STOP | {"name": f"f{n}", "parameters": {
            "type": "object", "properties": {"a": {"enum": ["x" * 40_000]}}}}} for n in range(2)]},
         "tools"),
    ],
)  # fmt: skip
def test_what_is_refused(given: dict[str, Any], param: str) -> None:
    hello = [{"role": "user", "content": "Hello."}]
    with pytest.raises(ApiError) as refused:
        chat_request({"model": "m", "messages": hello} | given, Limits())
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    ("calls", "at"),
    [
        ([1], "[0]"),
        ([{"id": "a", "function": {"name": "f", "arguments": "[1]"}}], "[0].function.arguments"),
        (
            [{"id": "a", "function": {"name": "f", "arguments": "{" * 5000}}],
            "[0].function.arguments",
        ),
        (
            [{"id": "a", "function": {"name": "f", "arguments": DEEP}}],
            "[0].function.arguments",
        ),
        ([{"id": "a", "function": {"name": "f"}}], "[0].function.arguments"),
        ([{"id": "a", "function": {"name": "", "arguments": ""}}], "[0].function.name"),
        ([{"function": {"name": "f", "arguments": ""}}], "[0].id"),
        ([{"id": "a", "type": "custom", "custom": {}}], "[0].custom"),
    ],
)
def test_calls_that_are_none(calls: Any, at: str) -> None:
    conversation = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
    with pytest.raises(ApiError) as refused:
        chat_request({"model": "m", "messages": conversation}, Limits())
    assert refused.value.param == f"messages[1].tool_calls{at}"


def test_an_answer_of_another_function_than_was_called() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    conversation = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "name": "stop", "content": "x"},
    ]
    with pytest.raises(ApiError, match="expected find, which its call named") as refused:
        chat_request({"model": "m", "messages": conversation}, Limits())
    assert refused.value.param == "messages[2].name"

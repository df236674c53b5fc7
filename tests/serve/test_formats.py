"""openai's clients ask for JSON: what comes parses and validates; the rest is cut or refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from avl_runtime import LVLM
from avl_runtime.serve.asked.fields import chat_request
from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.limits import Limits
from support.server import MODEL, ONE, TWO, Running, question

JSON = {"type": "json_object"}


class Thing(BaseModel, extra="forbid"):
    colour: Literal["red", "green"]
    count: int = Field(ge=0, le=99)
    name: str = Field(max_length=8)


class Scene(BaseModel, extra="forbid"):
    things: list[Thing] = Field(min_length=1, max_length=1)
    light: bool


SCHEMA = Scene.model_json_schema()


def as_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "scene", "schema": schema} | more}


ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": question(ONE),
    "max_tokens": 1200,
    "temperature": 1.2,
    "seed": 4,
}


def test_models_of_pydantic(server: Running, tiny: LVLM) -> None:
    with server.client() as client:
        found = client.chat.completions.parse(
            **ASKED, response_format=Scene, n=2, logprobs=True, extra_body={"prompt_lookup": 7}
        )
        with client.chat.completions.stream(**ASKED, response_format=Scene) as stream:
            events = list(stream)
            final = stream.get_final_completion()
    texts = [choice.message.content or "" for choice in found.choices]
    for choice, text in zip(found.choices, texts, strict=True):
        assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, Scene)
        jsonschema.validate(json.loads(text), SCHEMA)
        assert choice.logprobs is not None and choice.logprobs.content
    assert texts[0] != texts[1]
    assert final.choices[0].message.content == texts[0]
    assert final.choices[0].message.parsed == found.choices[0].message.parsed
    told = "".join(event.delta for event in events if event.type == "content.delta")
    assert told == texts[0]
    options = {"temperature": 1.2, "seed": 4, "max_new_tokens": 1200}
    ours = tiny.generate(ONE.prompt, [ONE.image], json_schema=SCHEMA, **options)
    assert ours.text == texts[0]


def test_answers_of_unlike_forms_come_together(server: Running) -> None:
    forms = [JSON, as_schema(SCHEMA), {"type": "text"}]

    async def all_of_them() -> list[Any]:
        async with openai.AsyncOpenAI(**server.options) as client:
            asked = ASKED | {"messages": question(TWO), "max_tokens": 60, "temperature": 0.5}
            both = [client.chat.completions.create(**asked, response_format=one) for one in forms]
            first = await asyncio.gather(*both[:2])
            return [*first, await both[2]]

    (choice,), (other,), (free,) = (one.choices for one in asyncio.run(all_of_them()))
    for one in (choice, other):
        assert one.message.content.startswith("{")
        if one.finish_reason == "stop":
            json.loads(one.message.content)
        else:
            assert one.finish_reason == "length"
    assert not free.message.content.startswith("{")


def test_what_is_cut_says_so(server: Running) -> None:
    with server.client() as client:
        asked = ASKED | {"max_tokens": 9}
        with pytest.raises(openai.LengthFinishReasonError):
            client.chat.completions.parse(**asked, response_format=Scene)
        found = client.responses.create(
            model=MODEL, input="What?", max_output_tokens=16, text={"format": JSON}
        )
        assert found.output_text.startswith("{") and found.text.format.type == "json_object"
        if found.status == "completed":
            json.loads(found.output_text)


def test_responses(server: Running) -> None:
    asked = {"model": MODEL, "input": "What?", "max_output_tokens": 1200, "temperature": 1.2}
    extra = {"seed": 4}
    with server.client() as client:
        found = client.responses.parse(**asked, text_format=Scene, extra_body=extra)
        assert isinstance(found.output_parsed, Scene) and found.status == "completed"
        with client.responses.stream(**asked, text_format=Scene, extra_body=extra) as stream:
            assert stream.get_final_response().output_parsed == found.output_parsed
        assert found.text.format.type == "json_schema" and found.text.format.name == "Scene"


def test_what_cannot_be_held_to_is_refused(server: Running) -> None:
    sets = {"type": "array", "items": {"type": "null"}, "uniqueItems": True, "maxItems": 3}
    with server.client() as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match=r"found: .*uniqueItems.*; change it"):
                client.chat.completions.create(
                    **ASKED, response_format=as_schema(sets, strict=True), stream=stream
                )
        found = client.chat.completions.create(**ASKED, response_format=as_schema(sets))
        assert isinstance(json.loads(found.choices[0].message.content or ""), list)
        for count in (300, 900):  # one is seen at once, and one when an object has begun
            many = {f"p{n}": {"type": "null"} for n in range(count)}
            one = {"type": "object", "properties": many, "minProperties": count - 290}
            with pytest.raises(openai.BadRequestError, match="expected what answers can be held"):
                client.chat.completions.create(**ASKED, response_format=as_schema(one, strict=True))


def wrong_forms() -> list[tuple[Any, str]]:
    at = "response_format.json_schema"
    return [
        (1, "response_format"),
        ({"type": "xml"}, "response_format"),
        ({"type": "text", "x": 1}, "response_format.x"),
        ({"type": "json_schema"}, at),
        ({"type": "json_schema", "name": "a", "schema": {}}, "response_format.name"),
        (as_schema({}, name="a b"), f"{at}.name"),
        (as_schema({}, name="a" * 65), f"{at}.name"),
        (as_schema({}, strict=1), f"{at}.strict"),
        (as_schema({}, description=1), f"{at}.description"),
        (as_schema([]), f"{at}.schema"),
        (as_schema({"enum": ["a" * 70_000]}), f"{at}.schema"),
        (as_schema({"multipleOf": 12345}), f"{at}.schema"),
        (as_schema({}, other=1), f"{at}.other"),
    ]


@pytest.mark.parametrize(("form", "param"), wrong_forms())
def test_forms_that_are_none(form: Any, param: str) -> None:
    said = [{"role": "user", "content": "Hello."}]
    with pytest.raises(ApiError) as refused:
        chat_request({"model": "m", "messages": said, "response_format": form}, Limits())
    assert (refused.value.status, refused.value.param) == (400, param)

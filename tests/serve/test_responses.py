"""openai's client and its stream helper, in the newer protocol."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from avl_runtime import LVLM
from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.told.responses import response_request
from support.server import MODEL, ONE, TWO, Running, data_url, question

ASKED = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": data_url(ONE.image), "detail": "auto"},
            {"type": "input_text", "text": ONE.prompt},
        ],
    }
]


def test_an_answer_and_what_follows_it(server: Running, tiny: LVLM) -> None:
    expected = tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=40, stop="P")
    asked = {"model": MODEL, "input": ASKED, "max_output_tokens": 40}
    extra = {"stop": "P", "policy": "dense"}
    with server.client() as client:
        found = client.responses.create(**asked, extra_body=extra)
        assert found.output_text == expected.text and found.status == "completed"
        assert found.usage is not None
        assert found.usage.input_tokens == expected.stats.prompt_tokens
        assert found.usage.output_tokens == expected.stats.new_tokens
        said = [*ASKED, *[one.model_dump() for one in found.output]]
        said += [{"role": "user", "content": "And?"}]
        cut = client.responses.create(model=MODEL, input=said, max_output_tokens=2)
        with pytest.raises(openai.BadRequestError, match="place for a system prompt"):
            client.responses.create(model=MODEL, input=said, instructions="Be brief.")
        plain = [{"type": "image", "image": ONE.image}, {"type": "text", "text": ONE.prompt}]
        again = tiny.generate(
            [
                {"role": "user", "content": plain},
                {"role": "assistant", "content": expected.text},
                {"role": "user", "content": "And?"},
            ],
            max_new_tokens=2,
        )
        assert cut.output_text == again.text
        assert cut.status == {"length": "incomplete"}.get(again.finish_reason, "completed")
        with client.responses.stream(**asked, extra_body=extra) as stream:
            events = list(stream)
            final = stream.get_final_response()
    assert final.output_text == expected.text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert told == expected.text


def test_tokens_are_counted(server: Running, tiny: LVLM) -> None:
    status, _, said = server.send("POST", "/tokenize", {"model": MODEL, "messages": question(TWO)})
    found = json.loads(said)
    ids = tiny.processor.encode(TWO.prompt, [TWO.image]).input_ids.tolist()
    assert (status, found["tokens"], found["count"]) == (200, ids, len(ids))
    assert found["max_model_len"] == tiny.package.manifest.dims.max_positions
    streamed = {"model": MODEL, "messages": question(TWO), "stream": True}
    status, _, said = server.send("POST", "/tokenize", streamed)
    assert (status, json.loads(said)["error"]["param"]) == (400, "stream")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "role": "user", "content": "x"}]},
         "input[0].role"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]},
         "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "y"}]},
         "input[0].arguments"),
        ({"input": [{"type": "reasoning", "id": "x", "summary": []}]}, "input[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function"}},
         "tool_choice.name"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]},
         "input[0].content[0].file_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": {}}]}]},
         "input[0].content[0].image_url"),
        ({"input": "x" * 90, "instructions": "y" * 90}, "input"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ],
)  # fmt: skip
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        response_request({"model": "m", "input": "x"} | fields, Limits(text=100))
    assert refused.value.param == param


def test_a_wrong_request_is_told(server: Running) -> None:
    with server.client() as client, pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input=ASKED, store=True)
    assert refused.value.param == "store"

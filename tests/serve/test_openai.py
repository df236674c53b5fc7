"""openai's own client asks a real server, and hears what `LVLM.generate` answers."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import openai
import pytest

from avl_runtime import LVLM, Result
from support.server import MODEL, ONE, TWO, Running, picture, question, said


def test_an_answer(server: Running, tiny: LVLM) -> None:
    with server.client() as client:
        found = client.chat.completions.create(
            model=MODEL, messages=question(ONE), max_completion_tokens=24
        )
        assert [one.id for one in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).owned_by == "avl"
    expected = tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=24)
    (choice,) = found.choices
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.finish_reason == {"eos": "stop"}.get(expected.finish_reason, "length")
    assert (found.object, found.model) == ("chat.completion", MODEL)
    assert found.usage is not None
    assert found.usage.prompt_tokens == expected.stats.prompt_tokens
    assert found.usage.completion_tokens == expected.stats.new_tokens
    assert found.usage.total_tokens == expected.stats.prompt_tokens + expected.stats.new_tokens
    assert choice.avl["kv_bytes"] == expected.stats.kv_bytes


def test_questions_about_the_same_pictures(server: Running, tiny: LVLM) -> None:
    """Rows of pictures are there from the first question on, and the answers the same."""
    shown = [picture(one.image) for one in (TWO, ONE)]
    with server.client() as client:
        for number, text in enumerate(("What is it?", "Read the text.")):
            found = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": [*shown, said(text)]}],
                max_tokens=8,
                n=2 - number,
                extra_body={"policy": "avl:keep=0.4"},
            )
            images = [TWO.image, ONE.image]
            expected = tiny.generate(text, images, policy="avl:keep=0.4", max_new_tokens=8)
            assert {choice.message.content for choice in found.choices} == {expected.text}
        known = found.choices[0].avl["prefix_tokens"]
    assert known == 256
    assert found.usage is not None and found.usage.prompt_tokens_details is not None
    assert found.usage.prompt_tokens_details.cached_tokens == known
    assert server.metric("avl_prefix_bytes") > 0


def test_pictures_among_texts_and_earlier_turns(server: Running, tiny: LVLM) -> None:
    parts = [said("First"), picture(ONE.image), said("then"), picture(TWO.image), said("?")]
    plain = [said("First"), {"type": "image", "image": ONE.image}, said("then")]
    plain += [{"type": "image", "image": TWO.image}, said("?")]
    front = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes."}]
    with server.client() as client:
        found = client.chat.completions.create(
            model=MODEL, messages=[*front, {"role": "user", "content": parts}], max_tokens=8
        )
        expected = tiny.generate([*front, {"role": "user", "content": plain}], max_new_tokens=8)
        assert found.choices[0].message.content == expected.text


def test_policies_decode_together(server: Running, tiny: LVLM) -> None:
    asked = [(ONE, "avl"), (TWO, "fastv"), (ONE, "dense")]

    async def all_of_them() -> list[Any]:
        async with openai.AsyncOpenAI(**server.options) as client:
            first, second = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=MODEL,
                        messages=question(one),
                        max_tokens=16,
                        extra_body={"policy": policy, "kv": "auto", "placements": True},
                    )
                    for one, policy in asked[:2]
                )
            )
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=question(ONE),
                max_tokens=16,
                stream=True,
                extra_body={"policy": "dense"},
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return [first, second, text]

    *whole, streamed = asyncio.run(all_of_them())
    results = [
        tiny.generate(
            one.prompt, [one.image], policy=policy, max_new_tokens=16, return_placements=True
        )
        for one, policy in asked
    ]
    assert streamed == results[2].text
    for found, expected in zip(whole, results, strict=False):
        assert found.choices[0].message.content == expected.text
        told = found.choices[0].avl["placements"]
        assert [one["step"] for one in told] == [one.step for one in expected.placements]
        for one, other in zip(told, expected.placements, strict=True):
            assert np.array_equal(unpacked(one["core"]), other.core)
        shown(found.choices[0].avl["visuals"], expected)


def unpacked(packed: dict[str, Any]) -> Any:
    bits = np.frombuffer(base64.b64decode(packed["bits"]), np.uint8)
    return np.unpackbits(bits, count=np.prod(packed["shape"])).reshape(packed["shape"])


def shown(visuals: list[dict[str, Any]], expected: Result) -> None:
    """The cells of each picture are told."""
    for one, cells in zip(visuals, expected.visuals, strict=True):
        assert (tuple(one["grid"]), tuple(one["seen"])) == (cells.grid, cells.seen)
        assert one["cells"] == cells.index.tolist()
    assert expected.dropped_before is not None
    dropped = [before for one in visuals for before in one["dropped_before"]]
    assert dropped == expected.dropped_before.tolist()


def test_placements_come_with_their_steps(server: Running, tiny: LVLM) -> None:
    """Each chunk tells how many tokens there are, what the step moved, and what is held."""
    asked = {"policy": "avl:refresh=3", "max_new_tokens": 12, "min_new_tokens": 12}
    expected = tiny.generate(ONE.prompt, [ONE.image], return_placements=True, **asked)
    del asked["max_new_tokens"]
    with server.client() as client:
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=question(ONE),
                max_tokens=12,
                stream=True,
                extra_body=asked | {"placements": "stream"},
            )
        )
    first, *told, last = [chunk.choices[0].avl for chunk in chunks]
    shown(first["visuals"], expected)
    assert [one["tokens"] for one in told] == list(range(1, 13))
    assert "placements" not in last and last["kv_bytes"] == expected.stats.kv_bytes
    dims = tiny.package.manifest.dims
    row = 2 * 4 * dims.num_kv_heads * dims.head_dim  # K and V in float32
    for one in told[:-1]:
        rows = expected.stats.prompt_tokens + one["tokens"] - 1  # the newest token has none yet
        place = [place for place in expected.placements if place.step <= one["tokens"]][-1]
        dropped = (~(place.core | place.parked)).sum()
        assert one["row_bytes"] == row * (dims.num_layers * rows - dropped)
        assert one["row_bytes_dense"] == row * dims.num_layers * rows
    assert told[-1]["row_bytes"] is None
    spent = [one["decode_ms"] for one in told]
    assert spent[0] == 0 and spent == sorted(set(spent))
    assert len({one["prefill_ms"] for one in told}) == 1 and told[0]["prefill_ms"] > 0
    moved = [(one["tokens"], place) for one in told for place in one["placements"]]
    assert len(moved) == len(expected.placements) > 3
    for (tokens, place), other in zip(moved, expected.placements, strict=True):
        # The step that made the n-th token chose what the next one reads; a prompt what the first.
        assert place["step"] == other.step and tokens == max(1, other.step)
        assert np.array_equal(unpacked(place["core"]), other.core)
        assert np.array_equal(unpacked(place["parked"]), other.parked)


def test_a_stream_and_what_was_used(server: Running, tiny: LVLM) -> None:
    expected = tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=24, stop="P")
    with server.client() as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=question(ONE),
            max_tokens=24,
            stop="P",
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    *choices, used = chunks
    assert used.choices == [] and used.usage is not None
    assert used.usage.completion_tokens == expected.stats.new_tokens
    text = "".join(chunk.choices[0].delta.content or "" for chunk in choices)
    assert text == expected.text
    assert [chunk.choices[0].finish_reason for chunk in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1].choices[0].finish_reason == "stop"


def test_the_stream_helper(server: Running, tiny: LVLM) -> None:
    expected = tiny.generate(TWO.prompt, [TWO.image], max_new_tokens=12)
    asked = {"model": MODEL, "messages": question(TWO), "max_tokens": 12}
    with server.client() as client, client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == expected.text

    async def the_same() -> str | None:
        async with (
            openai.AsyncOpenAI(**server.options) as client,
            client.chat.completions.stream(**asked) as stream,
        ):
            return (await stream.get_final_completion()).choices[0].message.content

    assert asyncio.run(the_same()) == expected.text


@pytest.mark.parametrize("stream", [False, True])
def test_choices_with_seeds_and_logprobs(server: Running, tiny: LVLM, stream: bool) -> None:
    asked = {"temperature": 2.0, "presence_penalty": 2.0, "seed": 5}
    each = [
        tiny.generate(
            ONE.prompt, [ONE.image], max_new_tokens=6, logprobs=2, **asked | {"seed": seed}
        )
        for seed in (5, 6)
    ]
    assert each[0].text != each[1].text
    with server.client() as client:
        found = client.chat.completions.create(
            model=MODEL,
            messages=question(ONE),
            max_tokens=6,
            n=2,
            logprobs=True,
            top_logprobs=2,
            stream=stream,
            **asked,
        )
        texts, logprobs = ["", ""], [[], []]
        if stream:
            for chunk in found:
                (choice,) = chunk.choices
                texts[choice.index] += choice.delta.content or ""
                logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
        else:
            for choice in found.choices:
                texts[choice.index] = choice.message.content
                logprobs[choice.index] = choice.logprobs.content
    for text, told, expected in zip(texts, logprobs, each, strict=True):
        assert text == expected.text
        wanted = [one for one in expected.logprobs if one.token_id not in tiny.processor.tokens.eos]
        assert [one.token for one in told] == [one.text for one in wanted]
        assert np.allclose(
            [one.logprob for one in told], [one.logprob for one in wanted], atol=1e-4
        )
        for one, other in zip(told, wanted, strict=True):
            assert [top.token for top in one.top_logprobs] == [top.text for top in other.top]


def test_every_event_is_whole(server: Running) -> None:
    """Each chunk has what openai's helper reads, and ends with an empty line."""
    body = {"model": MODEL, "messages": question(TWO), "max_tokens": 4, "stream": True}
    status, headers, sent = server.ask(body)
    assert status == 200 and headers["Content-Type"].startswith("text/event-stream")
    data = sent.decode()
    assert data.endswith("data: [DONE]\n\n")
    *events, end = data.removesuffix("\n\n").split("\n\n")
    assert end == "data: [DONE]"
    for event in events:
        chunk = json.loads(event.removeprefix("data: "))
        assert chunk["object"] == "chat.completion.chunk" and chunk["id"].startswith("chatcmpl-")
        assert {"created", "model", "choices", "usage"} <= chunk.keys()
        (choice,) = chunk["choices"]
        assert {"index", "delta", "finish_reason", "logprobs"} <= choice.keys()
    assert json.loads(events[0][6:])["choices"][0]["delta"]["role"] == "assistant"


def test_what_is_wrong_is_told(server: Running) -> None:
    with server.client() as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                model=MODEL,
                messages=question(ONE),
                store=True,
            )
        assert refused.value.param == "store"
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="other", messages=question(ONE))
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="expected a policy"):
            client.chat.completions.create(
                model=MODEL, messages=question(ONE), extra_body={"policy": "nothing"}
            )
        long = [{"role": "user", "content": "word " * 5000}]
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as too_long:
                client.chat.completions.create(model=MODEL, messages=long, stream=stream)
            assert too_long.value.code == "context_length_exceeded"
            assert "expected a prompt of at most " in too_long.value.message
            assert "/" not in too_long.value.message
    with (
        openai.OpenAI(**server.options | {"api_key": "wrong"}) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()

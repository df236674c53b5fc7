"""Streams with results, models that are closed, chats that fork, and one model for coroutines."""

from __future__ import annotations

import asyncio
import gc
import typing
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avl_plugins.errors import AvlError
from avl_runtime import LVLM, AsyncLVLM, Options
from avl_runtime.generate.keywords import OptionKeywords
from avl_runtime.generate.options import OptionError
from avl_runtime.requests import Scheduler
from avl_runtime.tasks import sample

ONE, TWO = sample("vqa", "held-out", 20), sample("ocr", "held-out", 21)
COUNT = "How many objects are there?"


def test_a_stream_has_its_result_behind_it(tiny: LVLM) -> None:
    expected = tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=8)
    stream = tiny.stream(ONE.prompt, [ONE.image], max_new_tokens=8, return_logits=True)
    pieces = list(stream)
    assert "".join(pieces) == stream.result.text == expected.text
    assert stream.result.token_ids == expected.token_ids
    count = len(expected.token_ids)
    assert stream.result.logits.shape == (count, tiny.package.manifest.dims.vocab_size)
    # What has not been asked for is waited for.
    assert tiny.stream(ONE.prompt, [ONE.image], max_new_tokens=8).result.text == expected.text
    with tiny.stream(TWO.prompt, [TWO.image]) as stream:
        assert next(stream)
    with pytest.raises(AvlError, match="was given up; ask again"):
        _ = stream.result
    failing = tiny.stream("word " * 2100)
    with pytest.raises(AvlError, match="at most 2048 tokens"):
        next(failing)
    with pytest.raises(AvlError, match="given up"):
        _ = failing.result


def test_arguments_stand_in_one_order(tiny: LVLM) -> None:
    pictures = [ONE.image]
    one = tiny.generate(ONE.prompt, pictures, (), max_new_tokens=4)
    (two,) = tiny.generate_batch([ONE.prompt], [pictures], [()], max_new_tokens=4)
    three = tiny.stream(ONE.prompt, pictures, (), max_new_tokens=4).result
    four = tiny.chat().send(ONE.prompt, pictures, (), max_new_tokens=4)
    assert one.token_ids == two.token_ids == three.token_ids == four.token_ids
    for call in (tiny.generate, tiny.stream, tiny.chat().send):
        with pytest.raises(TypeError, match="positional"):
            call(ONE.prompt, pictures, (), "avl")


def test_a_closed_model_gives_back_what_it_took(tiny_package: Path) -> None:
    with LVLM.load(tiny_package, backend="ort-cpu", threads=1) as model:
        chat = model.chat()
        assert chat.send(COUNT, max_new_tokens=2).text is not None
        backend = weakref.ref(model.loaded.backend)
    for use in (
        lambda: model.generate(COUNT),
        lambda: model.stream(COUNT),
        lambda: model.generate_batch([COUNT]),
        lambda: chat.send(COUNT),  # noqa: F821  # it is deleted after the loop
        model.chat,
    ):
        with pytest.raises(AvlError, match="found one that was closed; load it again"):
            use()
    del chat, use
    gc.collect()
    assert backend() is None
    model.close()  # a second time nothing happens


@pytest.mark.parametrize("policy", ["dense", "avl", "avl:text=0.5,text_min=4"])
def test_a_fork_goes_its_own_way(tiny: LVLM, policy: str) -> None:
    def asked(chat: Any, prompt: str, images: list[Any]) -> Any:
        return chat.send(prompt, images, max_new_tokens=6, return_logits=True)

    chat, plain = tiny.chat(policy), tiny.chat(policy)
    for each in (chat, plain):
        asked(each, ONE.prompt, [ONE.image])
    fork = chat.fork()
    read = reads(tiny)
    with read:
        ours = asked(fork, TWO.prompt, [TWO.image])
        theirs = asked(chat, COUNT, [])
        again = asked(fork, COUNT, [])
    assert read.whole == 0  # neither reads what both have read
    expected = asked(plain, COUNT, [])
    assert theirs.logits.tobytes() == expected.logits.tobytes()
    other = tiny.chat(policy)
    asked(other, ONE.prompt, [ONE.image])
    assert asked(other, TWO.prompt, [TWO.image]).logits.tobytes() == ours.logits.tobytes()
    assert asked(other, COUNT, []).logits.tobytes() == again.logits.tobytes()
    assert chat.messages == plain.messages and fork.messages == other.messages


class reads:  # read as a word of the test
    """Counts conversations that are begun."""

    def __init__(self, model: LVLM) -> None:
        self.loaded, self.whole = model.loaded, 0

    def __enter__(self) -> None:
        begin = self.loaded.sequence

        def counted(policy: Any) -> Any:
            self.whole += 1
            return begin(policy)

        self.loaded.sequence = counted

    def __exit__(self, *error: object) -> None:
        del self.loaded.sequence


@pytest.mark.parametrize(
    ("policy", "images", "anew"),
    [("dense", [], 0), ("dense", [TWO.image], 1), ("avl", [], 1), ("fastv", [], 1)],
)
def test_an_undone_turn_is_taken_back_or_all_is_read_anew(
    tiny: LVLM, policy: str, images: list[Any], anew: int
) -> None:
    chat, plain = tiny.chat(policy), tiny.chat(policy)
    for each in (chat, plain):
        each.send(ONE.prompt, [ONE.image], max_new_tokens=6)
    chat.send("Read.", images, max_new_tokens=9)
    chat.undo()
    read = reads(tiny)
    with read:
        found = chat.send(COUNT, max_new_tokens=5, return_logits=True)
    assert read.whole == anew
    if policy == "dense":  # of a policy, whose choices depend on what it has read at once
        expected = plain.send(COUNT, max_new_tokens=5, return_logits=True)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5, rtol=0)
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2


def test_coroutines_share_a_model(tiny: LVLM, tiny_package: Path) -> None:
    asked = [
        (ONE.prompt, [ONE.image], "avl"),
        (TWO.prompt, [TWO.image], "dense"),
        (COUNT, [], None),
    ]

    async def run() -> tuple[list[Any], list[str], Any, int]:
        async with AsyncLVLM.load(tiny_package, backend="ort-cpu", threads=1) as model:
            most = 0
            step = model._scheduler.step

            def counted() -> Any:
                nonlocal most
                most = max(most, len(model._scheduler.running))
                return step()

            model._scheduler.step = counted
            results = await asyncio.gather(
                *(
                    model.generate(prompt, images, policy=policy, max_new_tokens=12)
                    for prompt, images, policy in asked
                )
            )
            stream = model.stream(ONE.prompt, [ONE.image], max_new_tokens=6)
            pieces = [piece async for piece in stream]
            given_up = model.stream(TWO.prompt, [TWO.image])
            async for _ in given_up:
                break
            await given_up.aclose()
            task = asyncio.create_task(model.generate(TWO.prompt, [TWO.image]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(AvlError, match="max_new_tokens"):
                await model.generate("What?", max_new_tokens=0)
            with pytest.raises(AvlError, match="at most 2048"):
                await model.generate("word " * 2100)
            late = await model.generate(COUNT, max_new_tokens=3)
            return results, pieces, (stream.result, late), most

    results, pieces, (streamed, late), most = asyncio.run(run())
    for (prompt, images, policy), result in zip(asked, results, strict=True):
        expected = tiny.generate(prompt, images, policy=policy, max_new_tokens=12)
        assert result.token_ids == expected.token_ids
    assert most >= 2
    assert "".join(pieces) == streamed.text
    assert late.token_ids == tiny.generate(COUNT, max_new_tokens=3).token_ids


def test_a_closed_model_takes_no_more_coroutines(
    tiny_package: Path, unending: dict[str, int]
) -> None:
    async def run() -> None:
        model = AsyncLVLM.load(tiny_package, backend="ort-cpu", threads=1)
        stream = model.stream(ONE.prompt, [ONE.image], **unending)
        assert await anext(stream)
        await model.close()
        with pytest.raises(AvlError):  # what ran has been ended
            async for _ in stream:
                pass
        with pytest.raises(AvlError, match="was closed"):
            await model.generate(COUNT)
        await model.close()

    asyncio.run(run())


def test_a_batch_tells_what_ended_it(tiny: LVLM) -> None:
    with pytest.raises(AvlError, match="at most 2048 tokens"):
        tiny.generate_batch([COUNT, "word " * 2100], max_new_tokens=3)


def test_a_stream_of_a_model_that_was_closed(tiny_package: Path) -> None:
    model = LVLM.load(tiny_package, backend="ort-cpu", threads=1)
    begun, waiting = model.stream(COUNT, max_new_tokens=4), model.stream(COUNT, max_new_tokens=4)
    assert next(begun)
    model.close()
    for stream in (waiting, begun):
        with pytest.raises(AvlError, match="was closed"):
            next(stream)


def test_keywords_are_those_of_options() -> None:
    """By which a type checker knows a misspelt one."""
    hints = typing.get_type_hints(OptionKeywords)
    assert hints.pop("options") == Options | None
    assert hints == typing.get_type_hints(Options)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.generate("What?", polcy="avl"), "found 'polcy'; did you mean policy?"),
        (lambda m: m.stream("What?", max_new_token=3), "did you mean max_new_tokens?"),
        (lambda m: m.generate_batch(["What?"], retrun_logits=True), "did you mean return_logits?"),
        (lambda m: m.chat().send("What?", placeholder=True), "did you mean placeholders?"),
        (lambda m: m.chat().send("What?", policy="avl"), "expected a generation option"),
        (lambda m: Scheduler(m).add("What?", sytem="x"), "did you mean system?"),
        (lambda m: Options(max_new_token=3), "did you mean max_new_tokens?"),
    ],
)
def test_a_misspelt_keyword_is_told_with_the_nearest(tiny: LVLM, call: Any, says: str) -> None:
    with pytest.raises(OptionError) as error:
        call(tiny)
    assert says in str(error.value)

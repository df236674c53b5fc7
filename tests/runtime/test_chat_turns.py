"""What a chat remembers, when its turns begin and end, and when it reads everything anew."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.chat import Chat, ChatError
from avl_runtime.execute.protocol import PromptTooLongError
from avl_runtime.generate.reply import Reply
from avl_runtime.generate.sampling import Sampler, SamplingError
from avl_runtime.prompts.chat_template import TemplateError
from avl_runtime.prompts.messages import PromptError
from avl_runtime.prompts.processor import Processor
from avl_runtime.requests import loaded
from avl_runtime.tasks import sample
from face.support import LLAVA_TEMPLATE, sentencepiece_tokenizer
from support.reference import load_reference

ONE, TWO = sample("vqa", "held-out", 20), sample("ocr", "held-out", 21)
COUNT = "How many objects are there?"
HEAD = "{% for m in messages %}{% if m.role == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
PARTS = (
    "{% for p in m.content %}{% if p.type == 'image' %}<image>\n{% else %}{{ TEXT }}{% endif %}"
    "{% endfor %}{% if m.role == 'user' %} {% else %}</s>{% endif %}{% endfor %}"
)
# As of models that reason: the answer begins inside of a block, which earlier turns lose.
THINKING = (
    HEAD
    + PARTS.replace("TEXT", "p.text.split('</think>')[-1]")
    + "{% if add_generation_prompt %}ASSISTANT:<think>\n{% endif %}"
)
# Answers are shortened once a new turn follows.
SHORTENING = (
    HEAD
    + PARTS.replace("TEXT", "p.text if m.role == 'user' else p.text[:3]")
    + "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
WITH_SYSTEM = (
    "{% if messages[0].role == 'system' %}[{{ messages[0].content[0].text }}] "
    "{% set messages = messages[1:] %}{% endif %}"
    + HEAD
    + PARTS.replace("TEXT", "p.text")
    + "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="module")
def theirs(tiny_checkpoint: Path) -> Any:
    """Greedy tokens of transformers for whole conversations."""
    model, processor = (
        load_reference(tiny_checkpoint),
        AutoProcessor.from_pretrained(tiny_checkpoint),
    )

    def generate(messages: list[dict[str, Any]], template: str, steps: int) -> list[int]:
        text = processor.apply_chat_template(messages, template, add_generation_prompt=True)
        parts = [part for message in messages for part in message["content"]]
        images = [part["image"] for part in parts if part["type"] == "image"]
        inputs = processor(text=text, images=images or None, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=steps, do_sample=False)
        return [int(token) for token in out[0, inputs["input_ids"].shape[1] :]]

    return generate


@contextmanager
def template(model: LVLM, source: str) -> Iterator[LVLM]:
    """The same model with another chat template."""
    before, engine = model.loaded.processor, model.loaded
    manifest = dataclasses.replace(model.package.manifest, chat_template=source)
    engine.processor = Processor(manifest, before.tokenizer)
    try:
        yield model
    finally:
        engine.processor = before


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each prompt comes to be read: the turn alone or all."""
    seen: list[str] = []
    for name in ("read", "after"):
        method = getattr(Processor, name)

        def spy(self: Processor, *given: Any, method: Any = method, name: str = name) -> Any:
            seen.append(name)
            return method(self, *given)

        monkeypatch.setattr(Processor, name, spy)
    return seen


# When turns begin and end.


def test_a_turn_begins_when_its_stream_is_started(tiny: LVLM) -> None:
    chat, other = tiny.chat("dense"), tiny.chat("dense")
    late = chat.stream(COUNT, max_new_tokens=4, return_logits=True)
    never = chat.stream("What is left?", max_new_tokens=4)
    for one in (chat, other):
        one.send(ONE.prompt, [ONE.image], max_new_tokens=5)
    told, result = finished(late)
    wanted = other.send(COUNT, max_new_tokens=4, return_logits=True)
    assert told == result.text == wanted.text
    assert result.logits.tobytes() == wanted.logits.tobytes()
    assert chat.messages == other.messages and len(chat.messages) == 4
    never.close()
    del never
    assert chat.messages == other.messages


def finished(stream: Any) -> tuple[str, Any]:
    told = ""
    while True:
        try:
            told += next(stream)
        except StopIteration as end:
            return told, end.value


def test_one_turn_runs_at_a_time(tiny: LVLM) -> None:
    chat = tiny.chat("dense")
    chat.send(ONE.prompt, [ONE.image], max_new_tokens=3)
    before = chat.messages
    stream = chat.stream("Describe the image.", max_new_tokens=12)
    next(stream)
    uses = (
        lambda: chat.send(COUNT),
        lambda: next(chat.stream(COUNT)),
        chat.undo,
        chat.clear,
        lambda: chat.set_policy("avl"),
        lambda: chat.set_system(None),
    )
    for use in uses:
        with pytest.raises(ChatError, match="finish or close its stream first"):
            use()
    caught: list[BaseException] = []
    thread = threading.Thread(target=lambda: refuse(chat, caught))
    thread.start()
    thread.join()
    assert [type(error) for error in caught] == [ChatError]
    assert chat.messages == before
    rest, result = finished(stream)
    assert result.text.endswith(rest)
    assert chat.messages[-1]["content"] == [{"type": "text", "text": result.text}]
    chat.send(COUNT, max_new_tokens=2)


def refuse(chat: Chat, caught: list[BaseException]) -> None:
    try:
        chat.send(COUNT)
    except AvlError as error:
        caught.append(error)


@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_a_stream_given_up_leaves_what_was_told(tiny: LVLM, end: str) -> None:
    chat = tiny.chat("dense")
    stream = chat.stream("Describe the image.", [ONE.image], max_new_tokens=30)
    told = next(stream) + next(stream) + next(stream)
    if end == "closed":
        stream.close()
    del stream
    gc.collect()
    assert chat.messages[-1]["content"] == [{"type": "text", "text": told}]
    assert chat.send(COUNT, max_new_tokens=4).stats.visual_tokens == 0


@pytest.mark.parametrize("thrown", [RuntimeError, KeyboardInterrupt, AvlError, GeneratorExit])
def test_what_is_thrown_into_a_stream_gives_it_up(tiny: LVLM, thrown: type[BaseException]) -> None:
    """Between two pieces the cache is whole, whatever ends the turn."""
    chats = [tiny.chat("avl") for _ in range(2)]
    streams = [chat.stream("Describe the image.", [ONE.image], max_new_tokens=30) for chat in chats]
    told = [next(stream) + next(stream) for stream in streams]
    with pytest.raises(thrown):
        streams[0].throw(thrown("given up"))
    streams[1].close()
    assert chats[0].messages == chats[1].messages
    assert chats[0].messages[-1]["content"] == [{"type": "text", "text": told[0]}]
    found, wanted = (chat.send(COUNT, max_new_tokens=4, return_logits=True) for chat in chats)
    assert found.logits.tobytes() == wanted.logits.tobytes()


def test_streams_of_a_model_read_nothing_before_they_start(tiny: LVLM) -> None:
    made: list[object] = []
    sequence = tiny.loaded.sequence
    tiny.loaded.sequence = lambda policy: made.append(sequence(policy)) or made[-1]
    try:
        stream = tiny.stream(COUNT, max_new_tokens=3)
        assert not made
        assert "".join(stream)
        assert len(made) == 1
    finally:
        del tiny.loaded.sequence


# One text.


@pytest.mark.parametrize("given_up", [False, True])
def test_the_reply_is_what_was_streamed(
    tiny: LVLM, monkeypatch: pytest.MonkeyPatch, given_up: bool
) -> None:
    """Cut inside of characters, under a tokenizer with byte fallback (LLaVA-1.5's kind)."""
    tokenizer = sentencepiece_tokenizer(legacy=False)
    said = [tokenizer.token_to_id("▁a")]
    said += [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "é漢字".encode()]
    assert tokenizer.decode(said[:-1]) == "a" + "\ufffd" * 7  # what was whole is taken back
    texts = ["a", "a\ufffd", "aé", "aé\ufffd", "aé\ufffd\ufffd", "aé漢"]
    texts += ["aé漢\ufffd", "aé漢\ufffd\ufffd", "aé漢字"]
    before = tiny.loaded.processor
    manifest = dataclasses.replace(tiny.package.manifest, chat_template=LLAVA_TEMPLATE)
    tiny.loaded.processor = Processor(manifest, tokenizer)
    try:
        for length, text in enumerate(texts, 1):
            saying(monkeypatch, said)
            chat = tiny.chat("dense")
            stream = chat.stream("the one?", max_new_tokens=99 if given_up else length)
            if given_up:
                told = "".join(next(stream) for _ in text.rstrip("\ufffd"))
                stream.close()
                assert told == text.rstrip("\ufffd")
            else:
                told, result = finished(stream)
                assert told == result.text == text
                assert list(result.token_ids) == said[:length]
            assert chat.messages[-1]["content"] == [{"type": "text", "text": told}]
            assert chat.send("the other?", max_new_tokens=1).token_ids
    finally:
        tiny.loaded.processor = before


def saying(monkeypatch: pytest.MonkeyPatch, token_ids: list[int]) -> None:
    """Have every model say this."""
    waiting = iter(token_ids)
    monkeypatch.setattr(Sampler, "__call__", lambda *_: next(waiting, token_ids[0]))


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_on_request(tiny: LVLM, monkeypatch: pytest.MonkeyPatch, skip: bool) -> None:
    """What models write around places in a picture are special tokens."""
    tokenizer = tiny.processor.tokenizer
    said = tokenizer.encode(" a<pad>red<pad> ring</s>", add_special_tokens=False).ids
    assert said.count(0) == 2
    text = "ared ring" if skip else "a<pad>red<pad> ring"
    saying(monkeypatch, said)
    found = tiny.generate(COUNT, skip_special_tokens=skip, max_new_tokens=20)
    assert found.text == text and found.finish_reason == "eos"
    saying(monkeypatch, said)
    chat = tiny.chat("dense")
    told, result = finished(chat.stream(COUNT, skip_special_tokens=skip, max_new_tokens=20))
    assert told == result.text == text
    monkeypatch.undo()
    # They are special tokens where the conversation is read anew, and in a chat begun with it.
    seen: list[list[int]] = []
    prefill = loaded.prefill
    monkeypatch.setattr(
        loaded,
        "prefill",
        lambda sequence, manifest, rows, *more: (
            seen.append(rows.token_ids.tolist()) or prefill(sequence, manifest, rows, *more)
        ),
    )
    other = tiny.chat("dense", messages=chat.messages)
    chat.set_policy("avl")
    for one in (chat, other):
        one.send(COUNT, max_new_tokens=1)
    assert seen[0] == seen[1] and seen[0].count(0) == (0 if skip else 2)


# Whole conversations.


def test_a_thinking_block_is_read_as_transformers_does(tiny: LVLM, theirs: Any) -> None:
    with template(tiny, THINKING):
        chat = tiny.chat("dense")
        chat.send(ONE.prompt, [ONE.image], max_new_tokens=6)
        for prompt, images in ((TWO.prompt, [TWO.image]), (COUNT, [])):
            found = chat.send(prompt, images, max_new_tokens=8)
            asked = chat.messages[:-1]
            assert list(found.token_ids) == theirs(asked, THINKING, 8)
            assert found.stats.visual_tokens == 144 * len(
                [p for m in asked for p in m["content"] if p["type"] == "image"]
            )


def test_what_is_rewritten_because_of_the_reply_is_read_anew(tiny: LVLM, theirs: Any) -> None:
    """The template looks at what was said: a probe in its place would not be rewritten."""
    with template(tiny, SHORTENING):
        chat = tiny.chat("dense")
        first = chat.send("Describe the image.", [ONE.image], max_new_tokens=8)
        assert len(first.text) > 3
        found = chat.send(COUNT, max_new_tokens=8)
        assert list(found.token_ids) == theirs(chat.messages[:-1], SHORTENING, 8)


def test_other_templates_keep_the_cache(tiny: LVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = tiny.chat("dense")
    seen = reads(monkeypatch)
    for prompt, images in ((ONE.prompt, [ONE.image]), (TWO.prompt, [TWO.image]), (COUNT, [])):
        chat.send(prompt, images, max_new_tokens=3)
    assert seen.count("read") == 1


@pytest.mark.parametrize("stop", ["a", "r", "le"])
def test_a_stop_string_is_no_part_of_what_the_next_turn_reads(
    tiny: LVLM, theirs: Any, stop: str, tiny_checkpoint: Path
) -> None:
    source = (tiny_checkpoint / "chat_template.jinja").read_text()
    chat = tiny.chat("dense")
    first = chat.send("Describe the image.", [ONE.image], max_new_tokens=12, stop=[stop])
    assert first.finish_reason == "stop" and stop not in first.text
    found = chat.send(COUNT, max_new_tokens=6)
    assert list(found.token_ids) == theirs(chat.messages[:-1], source, 6)


# What is remembered.


def test_messages_begin_another_chat(tiny: LVLM) -> None:
    chat = tiny.chat("avl")
    chat.send(ONE.prompt, [ONE.image], max_new_tokens=4)
    parts = [{"type": "text", "text": "Here: "}, {"type": "image", "image": TWO.image}]
    chat.send(parts, max_new_tokens=4)
    messages = chat.messages
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[0]["content"][0]["image"] is ONE.image
    assert messages[0]["content"][1] == {"type": "text", "text": ONE.prompt}
    assert messages[2]["content"] == parts
    other = tiny.chat("avl", messages=messages)
    assert other.messages == messages and other.media == chat.media == ("image", "image")
    found = other.send(COUNT, max_new_tokens=4, return_logits=True)
    asked = {"role": "user", "content": COUNT}
    whole = tiny.generate([*messages, asked], policy="avl", max_new_tokens=4, return_logits=True)
    np.testing.assert_array_equal(found.logits, whole.logits)
    assert len(found.visuals) == 2


def test_undo_and_clear(tiny: LVLM) -> None:
    chat = tiny.chat("dense")
    first = chat.send(ONE.prompt, [ONE.image], max_new_tokens=5)
    kept = chat.messages
    once = chat.send(COUNT, max_new_tokens=5, return_logits=True)
    chat.undo()
    assert chat.messages == kept and chat.media == ("image",)
    again = chat.send(COUNT, max_new_tokens=5, return_logits=True)
    assert again.token_ids == once.token_ids
    np.testing.assert_allclose(again.logits, once.logits, atol=1e-4)
    chat.clear()
    assert chat.messages == [] and chat.media == ()
    with pytest.raises(ChatError, match="nothing"):
        chat.undo()
    assert chat.send(ONE.prompt, [ONE.image], max_new_tokens=5).token_ids == first.token_ids


def test_another_policy_reads_what_was_said(tiny: LVLM) -> None:
    chat = tiny.chat("avl")
    chat.send(ONE.prompt, [ONE.image], max_new_tokens=4)
    chat.set_policy("fastv")
    assert str(chat.policy).startswith("fastv")
    messages = [*chat.messages, {"role": "user", "content": COUNT}]
    found = chat.send(COUNT, max_new_tokens=4, return_logits=True)
    whole = tiny.generate(messages, policy="fastv", max_new_tokens=4, return_logits=True)
    np.testing.assert_array_equal(found.logits, whole.logits)
    with pytest.raises(AvlError):
        chat.set_policy("fastv:layer=5")
    assert str(chat.policy).startswith("fastv")


def test_system_prompts(tiny: LVLM) -> None:
    with template(tiny, WITH_SYSTEM):
        chat = tiny.chat("dense", system="Be brief.")
        messages = [{"role": "user", "content": COUNT}]
        for text in ("Be brief.", "Be long.", None):
            chat.set_system(text)
            found = chat.send(COUNT, max_new_tokens=4, return_logits=True)
            whole = tiny.generate(
                messages, policy="dense", system=text, max_new_tokens=4, return_logits=True
            )
            np.testing.assert_allclose(found.logits, whole.logits, atol=1e-5)
            assert (chat.messages[0]["role"] == "system") == (text is not None)
            chat.clear()
        talk = [{"role": "system", "content": "Be brief."}]
        assert tiny.chat("dense", messages=talk).messages[0]["content"][0]["text"] == "Be brief."
        with pytest.raises(PromptError, match="one system prompt"):
            tiny.chat(system="a", messages=talk)
    with pytest.raises(TemplateError, match="system"):
        tiny.chat(system="Be brief.")
    chat = tiny.chat()
    with pytest.raises(TemplateError, match="system"):
        chat.set_system("Be brief.")


@pytest.mark.parametrize(
    "roles", [["user"], ["assistant", "user"], ["user", "user"], ["user", "assistant", "system"]]
)
def test_messages_that_are_no_turns_are_refused(tiny: LVLM, roles: list[str]) -> None:
    with pytest.raises(PromptError, match="in turn"):
        tiny.chat(messages=[{"role": role, "content": "a"} for role in roles])


def test_a_turn_that_fails_changes_nothing(tiny: LVLM) -> None:
    chat, other = (tiny.chat("dense") for _ in range(2))
    for one in (chat, other):
        one.send(ONE.prompt, [ONE.image], max_new_tokens=4)
    failing: list[tuple[type[Exception], Any]] = [
        (PromptTooLongError, lambda: chat.send("long " * 2100)),
        (AvlError, lambda: chat.send("Look", ["no such file.png"])),
        (AvlError, lambda: chat.send("Look", max_new_tokens=0)),
        (PromptError, lambda: chat.send("")),
        (PromptError, lambda: chat.send([*chat.messages, {"role": "user", "content": "a"}])),
    ]
    for kind, use in failing:
        with pytest.raises(kind):
            use()
        assert chat.messages == other.messages
    found, wanted = (one.send(COUNT, max_new_tokens=4, return_logits=True) for one in (chat, other))
    assert found.logits.tobytes() == wanted.logits.tobytes()
    # Also where everything has to be read anew.
    chat.set_policy("avl")
    with pytest.raises(PromptTooLongError):
        chat.send("long " * 2100)
    assert chat.messages == other.messages
    assert chat.send(COUNT, max_new_tokens=2).token_ids


@pytest.mark.parametrize("told", [0, 2])
def test_a_turn_that_fails_in_its_reply_changes_nothing(tiny: LVLM, told: int) -> None:
    """Rules that leave no token, or logits that are no numbers, are met between decode steps."""
    chat, other = (tiny.chat("avl:text=0.6") for _ in range(2))
    for one in (chat, other):
        one.send(ONE.prompt, [ONE.image], max_new_tokens=4)
        one.set_policy("avl:text=0.5")
    words = [[token] for token in range(tiny.package.manifest.dims.vocab_size)]
    if told:
        nothing = {"min_new_tokens": told, "no_repeat_ngram_size": 1}
        said = tiny.chat("avl:text=0.5", messages=chat.messages)
        first = said.send(COUNT, max_new_tokens=told, **nothing).token_ids
        nothing["min_new_tokens"] = 9
        nothing["bad_words_ids"] = [[*first, *word] for word in words]
    else:
        nothing = {"suppress_tokens": [word[0] for word in words]}
    stream = chat.stream(COUNT, max_new_tokens=9, **nothing)
    with pytest.raises(SamplingError, match="leave"):
        for _ in stream:
            pass
    assert chat.messages == other.messages and chat.media == other.media
    found, wanted = (one.send(COUNT, max_new_tokens=4, return_logits=True) for one in (chat, other))
    assert found.logits.tobytes() == wanted.logits.tobytes()


def test_an_interrupted_turn_can_be_undone(tiny: LVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = tiny.chat("dense")
    chat.send(ONE.prompt, [ONE.image], max_new_tokens=4)
    kept = chat.messages
    with monkeypatch.context() as patch:
        patch.setattr(Reply, "take", interrupt)
        with pytest.raises(KeyboardInterrupt):
            chat.send(COUNT)
    with pytest.raises(ChatError, match="undo"):
        chat.send(COUNT)
    chat.undo()
    assert chat.messages == kept
    assert chat.send(COUNT, max_new_tokens=3).token_ids


def interrupt(*_: object) -> str:
    raise KeyboardInterrupt

"""Chats keep their cache between turns and take a new image in a later turn."""

from __future__ import annotations

import numpy as np
import pytest

from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.generate.prefill import finished, prefill
from avl_runtime.kv.append import Appender
from avl_runtime.prompts.processor import Prompt, Turn
from avl_runtime.prompts.rows import PromptRows
from avl_runtime.tasks import sample


def test_dense_turns_equal_reading_the_whole_conversation_at_once(tiny: LVLM) -> None:
    one, two = sample("vqa", "held-out", 20), sample("ocr", "held-out", 21)
    chat = tiny.chat("dense")
    first = chat.send(one.prompt, [one.image], max_new_tokens=6)
    second = chat.send(two.prompt, [two.image], max_new_tokens=6, return_logits=True)
    third = chat.send("How many objects are there?", max_new_tokens=4, return_logits=True)

    processor, loaded = tiny.processor, tiny.loaded
    turns = [(one.prompt, [one.image], first), (two.prompt, [two.image], second)]
    rows, history = [], ()
    for prompt, images, result in [*turns, ("How many objects are there?", [], third)]:
        encoded = processor.continue_chat(history, prompt, images)
        reply = Prompt.of(np.array(result.token_ids, np.int64), [3], (), 1)
        rows += [finished(loaded.embed(part)) for part in (encoded, reply)]
        history += (
            Turn(
                prompt,
                ("image",) * len(images),
                processor.decode(result.token_ids),
                result.finish_reason == "eos",
            ),
        )
    read = rows[:-1]  # all but the last reply
    hidden = np.concatenate([part.hidden for part in read])
    whole = PromptRows(
        np.concatenate([part.token_ids for part in read]),
        np.concatenate([part.image_mask for part in read]),
        hidden,
        np.zeros((0, *hidden.shape), np.float32),
        np.arange(len(hidden))[None],
        len(hidden),
    )
    sequence = loaded.sequence(tiny.policy)
    logits = finished(prefill(sequence, loaded.package.manifest, whole))
    np.testing.assert_allclose(logits, third.logits[0], atol=1e-4)


@pytest.mark.parametrize("policy", ["avl", "avl:text=0.5,text_min=4", "fastv", "avl+fastv"])
def test_a_new_image_in_a_later_turn_is_budgeted_with_the_old(tiny: LVLM, policy: str) -> None:
    one, two = sample("caption", "held-out", 22), sample("ocr", "held-out", 23)
    chat = tiny.chat(policy)
    chat.send(one.prompt, [one.image], max_new_tokens=10)
    result = chat.send(two.prompt, [two.image], max_new_tokens=10, return_placements=True)
    placed = result.placements[0]
    kept = placed.core | placed.parked
    assert kept.shape == (6, 288)
    if policy.startswith("avl"):
        # Half of both images together, however the ranking divides it between them; rows that the
        # first turn dropped do not come back.
        assert (kept.sum(1) == 144).all()
        assert (kept[:, :144].sum(1) <= 72).all()
        assert (placed.core.sum(1) == 86).all()


def test_an_unfinished_reply_can_be_followed_up(tiny: LVLM) -> None:
    one = sample("caption", "held-out", 24)
    chat = tiny.chat("avl")
    stream = chat.stream(one.prompt, [one.image], max_new_tokens=30)
    for _ in range(3):
        next(stream)
    stream.close()
    result = chat.send("How many objects are there?", max_new_tokens=4)
    assert result.stats.visual_tokens == 0
    assert result.token_ids


def test_a_prompt_that_fails_leaves_the_chat_as_it_was(tiny: LVLM, monkeypatch) -> None:
    one = sample("vqa", "held-out", 25)
    chats = [tiny.chat("avl:text=0.5,text_min=4") for _ in range(2)]
    for chat in chats:
        chat.send(one.prompt, [one.image], max_new_tokens=6)
    bind, calls = tiny.loaded.backend.bind, []

    def interrupted(segment, *buffers, **others):
        calls.append(segment)
        if segment == 1:
            raise KeyboardInterrupt
        return bind(segment, *buffers, **others)

    with monkeypatch.context() as patch:
        patch.setattr(tiny.loaded.backend, "bind", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chats[0].send("Where is the red ring?", [one.image])
    assert 1 in calls
    again = [
        c.send("How many objects are there?", max_new_tokens=5, return_logits=True) for c in chats
    ]
    assert again[0].logits.tobytes() == again[1].logits.tobytes()


def test_an_interruption_inside_a_step_ends_the_chat(tiny: LVLM, monkeypatch) -> None:
    one = sample("caption", "held-out", 26)
    chat = tiny.chat("dense")
    stream = chat.stream(one.prompt, [one.image])
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(Appender, "append", interrupted_append)
        with pytest.raises(KeyboardInterrupt):
            list(stream)
    with pytest.raises(AvlError, match="start a new chat"):
        chat.send("How many objects are there?")


def interrupted_append(*_: object) -> None:
    raise KeyboardInterrupt

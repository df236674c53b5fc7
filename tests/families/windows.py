"""Tests of families with windows that slide on: prompts in chunks, and several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.generate.prefill import finished
from families.drafts import EXACT, drafts_change_no_token
from families.shared import PROMPT, TOLERANCE
from families.support import Made, picture
from support.appended import appended_prompts

LONG = PROMPT * 12  # beyond every window, and in pieces of 256 more than one
ROUNDING = 2e-5  # of logits in float32; transformers' own are as far from float64


class WindowTests:
    """What must hold beside `FamilyTests`.

    Attributes:
        chunks: the sizes in which a prompt is read.
        turns_follow: whether a conversation has more turns than one.
        kind: of a reply's tokens, as transformers tells a prompt's from them.
    """

    chunks: ClassVar[tuple[int, ...]] = (1, 7, 1000)
    turns_follow: ClassVar[bool] = True
    kind: ClassVar[int] = 0

    def test_a_prompt_in_chunks(self, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two pictures, with text around and between them."""
        images = [picture((30, 20)), picture((20, 30), 1)]
        content = [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}]
        content.append({"type": "text", "text": PROMPT})
        want = made.encode_messages([{"role": "user", "content": content}], images)
        shown = [{"type": "image", "image": image} for image in images]
        asked = [shown[0], content[1], shown[1], content[3]]
        tokens, logits = made.generate(want, 16)
        for chunk in self.chunks:
            monkeypatch.setattr(made.model.loaded.executor, "chunk", chunk)
            got = made.model.generate(asked, policy="dense", max_new_tokens=16, return_logits=True)
            assert list(got.token_ids) == tokens
            np.testing.assert_allclose(got.logits, logits, atol=TOLERANCE, rtol=0)

    def test_long_turns_are_those_of_float64(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Prompts in pieces, 200 steps far behind what windows leave, and a turn behind these."""
        images, appended = [picture((30, 20))], appended_prompts(monkeypatch)
        chat = made.model.chat(policy="dense")
        first = chat.send(LONG, images, max_new_tokens=200, return_logits=True)
        tokens, logits = list(first.token_ids), [first.logits]
        if self.turns_follow:
            second = chat.send(PROMPT, max_new_tokens=9, return_logits=True)
            tokens += [*appended[-1].input_ids.tolist(), *second.token_ids]
            logits.append(second.logits)
        inputs = made.encode(LONG, images)
        expected = exact_logits(made, inputs, tokens[:-1], self.kind)
        begin = inputs["input_ids"].shape[1] - 1
        assert begin > 256
        for found, start in zip(logits, (begin, begin + len(tokens) - 9), strict=False):
            want = expected[start : start + len(found)]
            np.testing.assert_allclose(found, want, atol=ROUNDING, rtol=0)
        for chunk in self.chunks:
            monkeypatch.setattr(made.model.loaded.executor, "chunk", chunk)
            got = made.model.generate(
                LONG, images, policy="dense", max_new_tokens=1, return_logits=True
            )
            np.testing.assert_allclose(got.logits[0], expected[begin], atol=ROUNDING, rtol=0)

    def test_a_batch_of_unlike_prompts(self, made: Made) -> None:
        images = [[picture((30, 20))], [], [picture((9, 9), 1), picture((50, 20), 2)]]
        prompts = [PROMPT, "Read.", "Which?"]
        found = made.model.generate_batch(
            prompts, images, policy="dense", max_new_tokens=16, return_logits=True
        )
        for prompt, shown, got in zip(prompts, images, found, strict=True):
            tokens, logits = made.generate(made.encode(prompt, shown), 16)
            assert list(got.token_ids) == tokens
            np.testing.assert_allclose(got.logits, logits, atol=TOLERANCE, rtol=0)

    def test_a_refresh_of_one_that_has_nothing_parked(self, made: Made) -> None:
        """Due where the other in the batch is not, as it has replied for longer."""
        loaded, policy = made.model.loaded, parse("avl:keep=0.8,core=0.2,refresh=3")
        decoder, both = loaded.decoder(), []
        for prompt, images in ((PROMPT, [picture((30, 20))]), ("Read.", [])):
            sequence = loaded.sequence(policy)
            finished(loaded.prefill(sequence, loaded.processor.encode(prompt, images), steps=4))
            both.append(sequence)
        alone = []
        for sequence in both:
            one, single = sequence.fork(), loaded.decoder()
            single.join([one], 4)
            alone.append(single.run([9])[0].copy())
        both[1].step = 2
        decoder.join(both, 4)
        np.testing.assert_allclose(decoder.run([9, 9]), alone, atol=TOLERANCE, rtol=0)

    def test_drafts_change_no_token(self, made: Made) -> None:
        """By the core and by what was said before, right and wrong, also where windows have left
        rows behind.
        """
        drafts_change_no_token(made.model, PROMPT, TOLERANCE)

    @pytest.mark.parametrize(("kind", "share"), [("fp16", 1e-3), ("int8", 0.02)])
    def test_rows_in_fewer_bits(
        self, made: Made, kind: str, share: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Off by a share of the logits, in chunks of any size; drafts say the same."""
        images, options = [picture((30, 20))], {"policy": "dense", "return_logits": True}
        kept = LVLM.load(made.package, backend="ort-cpu", threads=1, kv=kind)
        for chunk in (1000, 7):
            both = []
            for model in (made.model, kept):
                monkeypatch.setattr(model.loaded.executor, "chunk", chunk)
                both.append(model.generate(PROMPT, images, max_new_tokens=1, **options))
            exact, found = (one.logits for one in both)
            assert 0 < np.linalg.norm(found - exact) < share * np.linalg.norm(exact)
            assert both[1].stats.kv_bytes <= both[0].stats.kv_bytes / 2
        dense, drafted = (
            kept.generate(PROMPT, images, policy=policy, max_new_tokens=24)
            for policy in ("dense", EXACT)
        )
        assert drafted.token_ids == dense.token_ids


class TurnTests:
    """Of families whose conversations have more turns than one."""

    def test_a_conversation_with_drafts_goes_on_as_without(self, made: Made) -> None:
        said = []
        for options in ({"policy": "dense"}, {"policy": EXACT}):
            chat = made.model.chat(**options)
            chat.send(PROMPT, [picture((30, 20))], max_new_tokens=20)
            pair = chat, chat.fork()
            told = [one.send(PROMPT, max_new_tokens=20).token_ids for one in pair]
            chat.undo()
            told.append(chat.send("Which?", max_new_tokens=20).token_ids)
            said.append(told)
        assert said[0] == said[1]


def exact_logits(
    made: Made, inputs: Mapping[str, torch.Tensor], behind: Sequence[int], kind: int
) -> Any:
    """Logits [tokens, V] of a prompt and what stands behind it, in float64 and one piece.

    Args:
        kind: of the tokens behind, where transformers asks for it.
    """
    text = torch.tensor([list(behind)])
    more = {"input_ids": text, "attention_mask": torch.ones_like(text)}
    more |= {name: torch.full_like(text, kind) for name in ("token_type_ids", "mm_token_type_ids")}
    given = {
        name: torch.cat([value, more[name]], 1) if name in more else value
        for name, value in inputs.items()
        if name != "labels"
    }
    with torch.inference_mode():
        return made.exact(**given, use_cache=False).logits[0].numpy()

"""Tests of families with windows that slide on: prompts in chunks, and several at once."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from families.shared import PROMPT, TOLERANCE
from families.support import Made, picture


class WindowTests:
    """What must hold beside `FamilyTests`; `chunks` are the sizes in which a prompt is read."""

    chunks: ClassVar[tuple[int, ...]] = (1, 7, 1000)

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

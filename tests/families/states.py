"""Tests of families whose layers keep states: prompts in chunks, and many steps behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest

from families.drafts import drafts_change_no_token
from families.shared import PROMPT, FamilyTests
from families.support import Made, picture


class StateTests(FamilyTests):
    """What must hold beside `FamilyTests`; `steps` are those after a prompt in chunks of a size."""

    steps: ClassVar[Mapping[int, int]] = {1: 20, 7: 20, 256: 20}

    @pytest.mark.parametrize("chunk", [1, 7, 256])
    def test_states_go_from_chunk_to_chunk(
        self, made: Made, chunk: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image, steps = picture((97, 61), 0), self.steps[chunk]
        tokens, logits = made.generate(made.encode(PROMPT, [image]), steps)
        monkeypatch.setattr(made.model.loaded.executor, "chunk", chunk)
        got = made.model.generate(PROMPT, [image], max_new_tokens=steps, return_logits=True)
        assert list(got.token_ids) == tokens
        assert got.logits is not None
        np.testing.assert_allclose(got.logits, logits, atol=self.tolerance, rtol=0)

    def test_drafts_change_no_token(self, made: Made) -> None:
        """A state that has read a wrong draft is as it was before."""
        drafts_change_no_token(made.model, PROMPT, self.tolerance)

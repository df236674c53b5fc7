"""A part of a prompt's rows kept, for each KV head: against transformers' own attention."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from families.support import Made
from oracle.hf_oracle import Rules
from oracle.retaining import RatedStages, Retained, method_of, stages_of

PROMPT = "What is in the picture? Read the text."
STEPS = 5
TOLERANCE = 1e-4  # of logits
CLEAR = 3e-5  # gaps of scores above which float32 noise cannot change a choice


class RetainedTests:
    """What must hold of policies about rows of all kinds, where positions and layouts differ."""

    retained: ClassVar[tuple[str, ...]] = (
        "snapkv:keep=0.4,window=5,pool=3",
        "pyramidkv:keep=0.4,window=5,beta=3",
        "vlcache:keep=0.3,window=6",
        "zipvl:tau=0.8,recent=6,drawn=4",
        "lookm:keep=0.4,recent=0.3",
    )

    def test_rows_kept_of_a_prompt_are_those_that_its_end_looks_at(self, made: Made) -> None:
        for spec in self.retained:
            for images in self._draws():
                oracle = Retained(made.reference, Rules(), *method_of(spec))
                got = made.model.generate(
                    PROMPT, images, policy=spec, max_new_tokens=STEPS, return_logits=True
                )
                with torch.inference_mode():
                    logits = [oracle.turn(made.encode(PROMPT, images))]
                    logits += [oracle.step(token) for token in got.token_ids[:-1]]
                if oracle.gap < CLEAR:
                    continue
                expected = torch.stack(logits).numpy()
                np.testing.assert_allclose(got.logits, expected, atol=TOLERANCE, rtol=0)
                assert (oracle.live_rows() < len(oracle.is_image)).any()
                break
            else:
                pytest.fail(f"{spec}: no draw with clear choices")

    def test_sparsevlm_ranks_by_the_text_that_pictures_resemble(self, made: Made) -> None:
        spec = "sparsevlm:layers=2,keep=0.4"
        for images in self._draws():
            oracle = RatedStages(made.reference, stages_of(spec))
            got = made.model.generate(
                PROMPT, images, policy=spec, max_new_tokens=STEPS, return_logits=True
            )
            with torch.inference_mode():
                logits = [oracle.turn(made.encode(PROMPT, images))]
                logits += [oracle.step(token) for token in got.token_ids[:-1]]
            if oracle.gap > CLEAR:
                expected = torch.stack(logits).numpy()
                np.testing.assert_allclose(got.logits, expected, atol=TOLERANCE, rtol=0)
                return
        pytest.fail("no draw with clear choices")

    def _draws(self) -> list[list[Image.Image]]:
        raise NotImplementedError

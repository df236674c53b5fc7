"""Which core `avl:exact` draws after a check, by Hugging Face's attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import avl_export
from avl_runtime import LVLM
from avl_runtime.generate.check import Check
from avl_runtime.tasks import sample
from support.reference import encode, load_reference

AVL_TINY = Path(avl_export.__file__).parent / "models" / "avl-tiny"
NEAR = 1e-4  # scores that differ by less, relatively, may change places


def test_wrong_drafts_draw_a_core_by_the_checks_attention_and_right_ones_none(
    tiny: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[tuple[list[int], int]] = []
    keep = Check.keep

    def noted(self: Check, count: int) -> None:
        checks.append((list(self._tokens), count))
        keep(self, count)

    monkeypatch.setattr(Check, "keep", noted)
    one = sample("caption", "held-out", 61)
    found = tiny.generate(
        one.prompt,
        [one.image],
        policy="avl:exact,core=0.1,n=6",
        max_new_tokens=24,
        return_placements=True,
    )
    model, inputs = load_reference(AVL_TINY), encode(AVL_TINY, one.prompt, [one.image])
    prompt = inputs["input_ids"][0]
    images = (prompt == model.config.image_token_index).numpy()
    kept, drawn, cores = 0, 0, [placement.core for placement in found.placements]
    assert len(cores) == 1 + len(checks)
    for number, (tokens, count) in enumerate(checks):
        before, after = cores[number], cores[number + 1]
        if count == len(tokens):
            np.testing.assert_array_equal(after, before)
        elif number + 1 < len(checks):  # behind the last one nothing is drafted
            known = [*prompt.tolist(), *found.token_ids[:kept], *tokens]
            scores = attention(model, inputs, known, len(tokens))[:, np.flatnonzero(images)]
            assert after.sum(1).tolist() == before.sum(1).tolist()
            for core, score in zip(after, scores, strict=True):
                assert score[core].min() >= score[~core].max() * (1 - NEAR)
            drawn += bool((after != before).any())
        kept += count
    assert drawn and any(count == len(tokens) for tokens, count in checks)


def attention(model: torch.nn.Module, inputs: dict, known: Sequence[int], rows: int) -> np.ndarray:
    """Head-mean attention of the last rows on all tokens, summed over these rows, [layers, S]."""
    given = {**inputs, "input_ids": torch.tensor([known])}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    with torch.inference_mode():
        maps = model(**given, output_attentions=True).attentions
    return np.stack([layer[0, :, -rows:].mean(0).sum(0).numpy() for layer in maps])

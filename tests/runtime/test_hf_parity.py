"""The dense runtime against Hugging Face Transformers on the embedded model, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avl_runtime import LVLM
from avl_runtime.tasks import TASKS, samples
from support.reference import encode, load_reference

SAMPLES = 50


@pytest.mark.parametrize("task", TASKS)
def test_dense_equals_transformers_generate(tiny: LVLM, tiny_checkpoint: Path, task: str) -> None:
    reference = load_reference(tiny_checkpoint)
    largest = 0.0
    for one in samples(task, "held-out", SAMPLES, start=10_000):
        inputs = encode(tiny_checkpoint, one.prompt, [one.image])
        with torch.inference_mode():
            expected = reference.generate(
                **inputs,
                max_new_tokens=64,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        tokens = expected.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        logits = torch.cat(expected.logits).numpy()
        result = tiny.generate(
            one.prompt, [one.image], policy="dense", max_new_tokens=64, return_logits=True
        )
        assert list(result.token_ids) == tokens
        assert result.logits.shape == logits.shape
        largest = max(largest, float(np.abs(result.logits - logits).max()))
    assert largest <= 1e-4

"""GLM-4V: learned positions stretched cubically, four norms a layer, partial M-RoPE."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm46VForConditionalGeneration,
)

from avl_export.options import Options
from avl_export.plan.plan import make_plan
from families.glm import COMMON, TEXT, TOKENS, TURNS, VISION, processor
from families.qwen import PatchTests, merged
from families.shared import PROMPT, FamilyTests
from families.support import Case, picture, refused

CASES = (
    Case(
        name="glm4v",
        model=Glm4vForConditionalGeneration,
        # The MLP of the encoder's layers is as wide as what the encoder puts out.
        config=Glm4vConfig(text_config=TEXT, vision_config=VISION, **TOKENS),
        processor=processor,
        **COMMON,
    ),
)


class TestGlm4v(FamilyTests):
    cases = CASES
    turns = TURNS
    _same_pixels = staticmethod(PatchTests._same_pixels)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_config": {"image_size": [20, 20]}}, "an image_size of one number"),
        ({"vision_config": {"image_size": 3}}, "at least a patch of 4 pixels"),
        ({"vision_config": {"patch_size": [4, 4]}}, "patch_size to be one number"),
    ],
)
def test_variants_that_are_refused(
    make: Any, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    made = make(CASES[0])
    assert expected in refused(made, tmp_path, {"config.json": merged(made, changes)})


def test_glm46v_is_the_same_model(make: Any, tmp_path: Path) -> None:
    """What is exported of one is what is exported of the other, and what transformers computes."""
    made = make(CASES[0])
    folder = shutil.copytree(made.folder, tmp_path / "model")
    renamed = {"model_type": "glm46v", "architectures": ["Glm46VForConditionalGeneration"]}
    config = json.loads((folder / "config.json").read_text()) | renamed
    (folder / "config.json").write_text(json.dumps(config))
    one, other = (
        make_plan(Options(str(path), tmp_path / "x.avl")) for path in (made.folder, folder)
    )
    assert other.family.name == "glm46v"
    assert other.family.traits == one.family.traits
    assert other.family.decoder.dims == one.family.decoder.dims
    assert other.weights.places == one.weights.places
    assert str(other.family.model.model).replace("Glm46V", "Glm4v") == str(one.family.model.model)
    theirs = Glm46VForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    inputs = made.encode(PROMPT, [picture((97, 61))])
    with torch.inference_mode():
        expected = made.reference(**inputs).logits
        torch.testing.assert_close(theirs(**inputs).logits, expected, atol=0, rtol=0)
    changes = renamed | merged(made, {"vision_config": {"model_type": "x"}})
    said = refused(made, tmp_path, {"config.json": changes})
    assert "expected glm4v_vision as model_type" in said

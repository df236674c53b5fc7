"""GLM-4V: learned positions stretched cubically, four norms a layer, partial M-RoPE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Glm4vConfig, Glm4vForConditionalGeneration

from families.glm import COMMON, TEXT, TOKENS, TURNS, VISION, processor
from families.qwen import PatchTests, merged
from families.shared import FamilyTests
from families.support import Case, refused

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

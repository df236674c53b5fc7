"""GLM-OCR: norms of queries and keys in the encoder, a convolution over cells, partial M-RoPE."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from transformers import GlmOcrConfig, GlmOcrForConditionalGeneration
from transformers.models.glm46v.image_processing_pil_glm46v import smart_resize

from avl_runtime.vision.load.images import ImageError
from avl_runtime.vision.patches import Patches, PatchImage
from avl_runtime.vision.steps import ImageProcessing
from families.glm import (
    COMMON,
    TEXT,
    TOKENS,
    TURNS,
    VISION,
    GlmTests,
    encode,
    filmed,
    video_files,
)
from families.support import Case

CASES = (
    Case(
        name="glm_ocr",
        model=GlmOcrForConditionalGeneration,
        config=GlmOcrConfig(text_config={**TEXT, "head_dim": 16}, vision_config=VISION, **TOKENS),
        processor=filmed("glm46v"),
        files=video_files("Glm46VVideoProcessor"),
        encode=encode,
        **COMMON,
    ),
)


class TestGlmOcr(GlmTests):
    cases = CASES
    turns = TURNS


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_sizes_are_those_of_transformers(height: int, width: int) -> None:
    limits = (112 * 112, 28 * 28 * 15000)
    steps = ImageProcessing(True, None, 3, None, None, None, None)
    layout = PatchImage("patches", steps, Patches(14, 2, 2, None, None), *limits, "grown")
    try:
        expected = smart_resize(2, height, width, 2, 28, *limits)
    except ValueError:
        expected = None
    try:
        found = layout._size(height, width, "image")
    except ImageError:
        found = None
    assert found == expected

"""LightOnOCR: Pixtral's tower over pictures whose last patches may make up no whole cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LightOnOcrConfig, LightOnOcrForConditionalGeneration
from transformers.models.lighton_ocr.processing_lighton_ocr import (
    LightOnOcrProcessor,
    get_resize_output_image_size,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from avl_runtime.vision.lines import LinedImage
from avl_runtime.vision.load.images import ImageError
from avl_runtime.vision.patches import Patches
from avl_runtime.vision.steps import ImageProcessing
from families.pixtral import EDGE, PATCH, TEXT, VISION, PixtralTests
from families.support import Case, Made, picture, refused, without_checks

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>")
SPECIAL = (*SPECIAL, "<|vision_pad|>", "<|vision_end|>")
NAMES = {"image": "<|image_pad|>", "image_break": "<|vision_pad|>", "image_end": "<|vision_end|>"}
# Of lightonai/LightOnOCR-2-1B's.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<|image_pad|>"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROCESSOR = {"patch_size": PATCH, "spatial_merge_size": 2}


def config() -> LightOnOcrConfig:
    return LightOnOcrConfig(
        text_config={**TEXT, "model_type": "qwen3"},
        vision_config=VISION,
        image_token_id=SPECIAL.index("<|image_pad|>"),
        spatial_merge_size=2,
    )


def processor(tokenizer: Any) -> Any:
    tokenizer._set_model_specific_special_tokens({f"{n}_token": text for n, text in NAMES.items()})
    return without_checks(LightOnOcrProcessor)(
        PixtralImageProcessorPil(size={"longest_edge": EDGE}, patch_size=PATCH),
        tokenizer,
        patch_size=PATCH,
        spatial_merge_size=2,
        chat_template=tokenizer.chat_template,
    )


CASES = (
    Case(
        name="lighton_ocr",
        model=LightOnOcrForConditionalGeneration,
        config=config(),
        special=SPECIAL,
        template=TEMPLATE,
        processor=processor,
        files={"processor_config.json": PROCESSOR},
    ),
)


class TestLightOnOcr(PixtralTests):
    cases = CASES
    # Patches in whole cells, and 15 x 10, 8 x 5 and 5 x 14 of them.
    turns = ((), ((40, 64),), ((97, 61), (20, 30), (56, 19)))

    def test_some_pictures_have_patches_that_are_no_token(self, made: Made) -> None:
        """Otherwise the shared tests of such pictures would not test that."""
        prompt = made.model.processor.encode("What?", [picture((20, 30))])
        (media,) = prompt.media
        assert media.cells.grid == (4, 2)
        assert (media.inputs["mask"] == 0).sum() == 8 * 5 > 4 * media.tokens
        np.testing.assert_array_equal(media.inputs["order"], [0, 1, 3, 4, 6, 7, 9, 10])


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([14, 28]))
def test_sizes_are_those_of_transformers(height: int, width: int, step: int) -> None:
    steps = ImageProcessing(True, None, 3, None, None, None, None)
    layout = LinedImage("lines", steps, Patches(14, 1, 2, None, None), (1540, 1000), step, "", "")
    shown = np.broadcast_to(np.uint8(0), (height, width, 3))
    expected = get_resize_output_image_size(shown, (1540, 1000), step, "channels_last")
    assert layout.size_of(height, width) == expected


def test_pictures_without_a_token_are_refused(make: Any) -> None:
    layout = make(CASES[0]).model.package.manifest.image.layout
    with pytest.raises(ImageError, match="expected at least 8 x 8 pixels as the model sees it"):
        layout.prepare(picture((40, 3)), "x")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"patch_size": 5}, "patch_size to be 4 or 8, found 5"),
        ({"patch_size": {"height": 4, "width": 8}}, "patch_size to be 4 or 8"),
        ({"do_center_crop": True, "crop_size": {"height": 8, "width": 8}}, "do_center_crop"),
    ],
)
def test_processors_that_are_refused(
    make: Any, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(make(CASES[0]), tmp_path, {"preprocessor_config.json": changes})

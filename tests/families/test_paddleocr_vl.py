"""PaddleOCR-VL: learned positions stretched by their edges, thin pictures widened, M-RoPE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration, vision_utils
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (
    PaddleOCRVLImageProcessorPil,
    smart_resize,
)
from transformers.models.paddleocr_vl.processing_paddleocr_vl import PaddleOCRVLProcessor

from avl_runtime.prompts.messages import PromptError
from avl_runtime.vision.load.images import ImageError
from avl_runtime.vision.patches import Patches, PatchImage
from avl_runtime.vision.steps import ImageProcessing
from families.shared import FamilyTests
from families.support import Case, Made, clip, refused, without_checks

SPECIAL = (
    "<unk>",
    "<s>",
    "</s>",
    "<|begin_of_sentence|>",
    "<|IMAGE_START|>",
    "<|IMAGE_END|>",
    "<|IMAGE_PLACEHOLDER|>",
    "<|video_pad|>",
)
PATCH = 4
SIZE = {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 60}
# Of PaddlePaddle/PaddleOCR-VL's: pictures come first.
TEMPLATE = """\
<|begin_of_sentence|>
{%- for message in messages %}
    {%- set name = {'user': 'User: ', 'assistant': 'Assistant: '}.get(message.role, '') %}
    {{- name }}
    {%- for content in message.content if content.type == 'image' -%}
        <|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>
    {%- endfor %}
    {%- for content in message.content if content.type == 'text' %}
        {{- content.text }}
    {%- endfor %}
    {{- '</s>' if message.role == 'assistant' else '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant: ' }}
{%- endif %}
"""


def config() -> PaddleOCRVLConfig:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    return PaddleOCRVLConfig(
        text_config={
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 2048,
            "rope_parameters": rope,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": PATCH,
            "image_size": 5 * PATCH,
        },
        image_token_id=SPECIAL.index("<|IMAGE_PLACEHOLDER|>"),
        video_token_id=SPECIAL.index("<|video_pad|>"),
        vision_start_token_id=SPECIAL.index("<|IMAGE_START|>"),
        vision_end_token_id=SPECIAL.index("<|IMAGE_END|>"),
    )


def processor(tokenizer: Any) -> Any:
    return without_checks(PaddleOCRVLProcessor)(
        PaddleOCRVLImageProcessorPil(size=SIZE, patch_size=PATCH),
        tokenizer,
        chat_template=tokenizer.chat_template,
    )


CASES = (
    Case(
        name="paddleocr_vl",
        model=PaddleOCRVLForConditionalGeneration,
        config=config(),
        special=SPECIAL,
        eos="</s>",
        pad="<unk>",
        template=TEMPLATE,
        processor=processor,
    ),
)


class TestPaddleOcrVl(FamilyTests):
    cases = CASES
    turns = ((), ((97, 61),), ((40, 130), (64, 64), (5, 50)))

    @staticmethod
    def _same_pixels(inputs: list[dict[str, np.ndarray]], want: np.ndarray) -> None:
        """transformers has patches row by row."""
        rows = [one["pixel_values"][0, np.lexsort(one["position_ids"].T[::-1])] for one in inputs]
        got = np.concatenate(rows).reshape(want.shape)
        np.testing.assert_allclose(got, want, atol=1e-6, rtol=0)

    def test_videos_are_refused(self, made: Made) -> None:
        """transformers has none for this family; its vocabulary has a token for them."""
        assert not hasattr(made.reference, "get_video_features")
        said = "found 1 videos, which a model of the paddleocr_vl family does not take"
        with pytest.raises(PromptError, match=said):
            made.model.processor.encode("What?", videos=[clip(2, (30, 30))])


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_sizes_are_those_of_transformers(height: int, width: int) -> None:
    limits = (384 * 384, 1536 * 1536)
    steps = ImageProcessing(True, None, 3, None, None, None, None)
    cut = Patches(14, 1, 2, None, 27, "edges")
    layout = PatchImage("patches", steps, cut, *limits, "widened")
    try:
        expected = smart_resize(height, width, 28, *limits)
    except ValueError:
        with pytest.raises(ImageError, match="200 times"):
            layout._size(height, width, "image")
    else:
        assert layout._size(height, width, "image") == expected


@given(st.integers(1, 24), st.integers(1, 24))
def test_positions_are_those_of_transformers(rows: int, columns: int) -> None:
    grid = torch.tensor([[1, 2 * rows, 2 * columns]])
    frame = np.zeros((1, 3, 8 * rows, 8 * columns), np.float32)
    inputs = Patches(4, 1, 2, None, 7, "edges").inputs(frame)
    places, shares = vision_utils.get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=7, mode="bilinear", align_corners=False, spatial_merge_size=2
    )
    np.testing.assert_array_equal(inputs["places"], places)
    np.testing.assert_array_equal(inputs["shares"], shares)


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("preprocessor_config.json", {"temporal_patch_size": 2}, "temporal_patch_size to be 1"),
        ("preprocessor_config.json", {"patch_size": 14}, "patch_size to be 4 as in config.json"),
        ("config.json", {"vision_config": {"image_size": 9}}, "at least a patch of 14 pixels"),
    ],
)
def test_variants_that_are_refused(
    make: Any, tmp_path: Path, file: str, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(make(CASES[0]), tmp_path, {file: changes})

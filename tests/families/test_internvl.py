"""InternVL: tiles with a thumbnail, videos as lines of frames; a Qwen2 decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    Qwen2Config,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from avl_runtime.vision.frame_steps import middles
from avl_runtime.vision.tiles import best_layout
from families.shared import PROMPT, FamilyTests
from families.support import Case, Made, clip, make_tokenizer, picture, refused, without_checks
from families.torch_videos import TorchVideos

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
SPECIAL = (*SPECIAL, "<video>")
NAMED = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
TILE, PATCH = 32, 4
TOKENS = (TILE // PATCH // 2) ** 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# As in OpenGVLab/InternVL3-2B-hf.
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)


def config(text: Any, vision: Mapping[str, Any], **changes: Any) -> InternVLConfig:
    tower = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=[TILE, TILE],
        patch_size=[PATCH, PATCH],
        **vision,
    )
    token = SPECIAL.index("<IMG_CONTEXT>")
    return InternVLConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=token,
        image_seq_length=TOKENS,
        **changes,
    )


def processor(tokenizer: Any) -> InternVLProcessor:
    names = {**NAMED, "context_image_token": "<IMG_CONTEXT>"}
    tokenizer._set_model_specific_special_tokens(names)
    size = {"height": TILE, "width": TILE}
    return without_checks(InternVLProcessor)(
        GotOcr2ImageProcessorPil(size=size, max_patches=6, image_mean=MEAN, image_std=STD),
        tokenizer,
        TorchVideos((TILE, TILE), None, MEAN, STD),
        image_seq_length=TOKENS,
        chat_template=tokenizer.chat_template,
    )


SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
COMMON: dict[str, Any] = {
    "model": InternVLForConditionalGeneration,
    "special": SPECIAL,
    "eos": "<|im_end|>",
    "pad": "<|endoftext|>",
    "template": TEMPLATE,
    "processor": processor,
    "files": {"tokenizer_config.json": {"extra_special_tokens": NAMED}},
}
CASES = (
    # As InternVL3-2B; test_qianfan_ocr.py has a tower as InternVL3-38B's, and Qwen3.
    Case(
        name="internvl-qwen2",
        config=config(
            Qwen2Config(
                **SHAPE,
                tie_word_embeddings=False,
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
            ),
            {"attention_bias": True},
            tie_word_embeddings=False,
        ),
        **COMMON,
    ),
)


class TestInternVL(FamilyTests):
    cases = CASES
    # One tile; wide and tall ones; the most tiles, and a picture smaller than a tile.
    turns = ((), ((64, 61),), ((97, 61), (40, 130)), ((500, 9), (6, 5), (90, 64)))
    asked = ((97, 50),)
    films = (((4, (60, 40)),), ((2, (33, 90)), (2, (41, 41))))

    def pixels(self, inputs: Mapping[str, torch.Tensor], kind: str) -> np.ndarray:
        """transformers hands over frames behind tiles, under one name."""
        text = make_tokenizer(CASES[0]).decode(inputs["input_ids"][0])
        frames = len(re.findall(r"Frame\d+: <img>", text))
        values = inputs["pixel_values"].numpy()
        tiles = len(values) - frames
        return values[tiles:] if kind == "video" else values[:tiles]

    def test_a_picture_and_its_thumbnail(self, made: Made) -> None:
        layout = made.model.package.manifest.image.layout
        wide = layout.prepare(picture((3 * TILE, TILE)), "?")
        assert wide.inputs["pixel_values"].shape[0] == 4
        assert wide.replacement == f"<img>{'?' * 4 * TOKENS}</img>"
        # Tokens of the second of three tiles show the middle third, the thumbnail's nothing.
        columns = wide.cells.grid[1]
        shown = wide.cells.index.reshape(4, -1)
        assert (shown[1] % columns // (columns // 3) == 1).all()
        assert (shown[3] == -1).all()
        assert layout.prepare(picture((TILE, TILE)), "?").tokens == TOKENS
        assert layout.view(picture((3 * TILE, TILE))).size == (3 * TILE, TILE)

    def test_frames_are_lines_of_the_prompt(self, made: Made) -> None:
        film = clip(21, (40, 40))
        prompt = made.model.processor.encode(PROMPT, videos=[film])
        (media,) = prompt.media
        lines = media.replacement.split("\n")
        assert [line.split(":")[0] for line in lines] == [f"Frame{i}" for i in range(1, 9)]
        want = made.encode(PROMPT, videos=[[film[i] for i in middles(21, 8)]])
        assert prompt.input_ids.tolist() == want["input_ids"][0].tolist()
        np.testing.assert_allclose(
            media.inputs["pixel_values"], want["pixel_values"].numpy(), atol=1e-6, rtol=0
        )


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    tile=st.sampled_from([32, 448]),
    least=st.integers(1, 4),
    more=st.integers(0, 12),
)
def test_layouts_of_tiles(width: int, height: int, tile: int, least: int, more: int) -> None:
    tiles = (least, least + more)
    columns, rows = get_optimal_tiled_canvas((height, width), (tile, tile), *tiles)
    assert best_layout((width, height), (tile, tile), tiles) == (rows, columns)


@given(frames=st.integers(1, 40), more=st.integers(1, 5000))
def test_middle_frames(frames: int, more: int) -> None:
    """The frames that transformers' InternVLVideoProcessor.sample_frames takes."""
    count = frames + more
    part = count / frames
    expected = torch.arange(part / 2, count, part).int().tolist()
    assert middles(count, frames) == expected
    assert middles(frames, count) == list(range(frames))


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"config.json": {"vision_feature_layer": [-2, -1]}}, "vision_feature_layer"),
            ({"config.json": {"vision_feature_select_strategy": "full"}}, "select_strategy"),
            ({"config.json": {"downsample_ratio": 0.4}}, "downsample_ratio"),
            ({"preprocessor_config.json": {"size": 40}}, "pictures of 32 x 32"),
            ({"preprocessor_config.json": {"do_resize": False}}, "found size None"),
            ({"preprocessor_config.json": {"min_patches": 0}}, "min_patches"),
            ({"tokenizer_config.json": {"extra_special_tokens": []}}, "start_image_token"),
        ],
    )
    def test_variants(
        self, make: Any, tmp_path: Path, changes: Mapping[str, Mapping[str, Any]], said: str
    ) -> None:
        assert said in refused(make(CASES[0]), tmp_path, changes)

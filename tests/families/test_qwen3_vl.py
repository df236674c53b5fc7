"""Qwen3-VL: learned positions stretched, deepstack, interleaved M-RoPE, times as text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from avl_export.cli import main
from avl_runtime.package.package import load_package
from avl_runtime.vision.load.videos import Video
from families import telling
from families.chosen import ChosenVideoTests
from families.qwen import (
    SPECIAL,
    TEXT,
    TOKENS,
    PatchTests,
    merged,
    video_processor,
)
from families.retained import RetainedTests
from families.support import Case, Made, clip, refused, without_checks, write_checkpoint

PATCH = 4
SIZE = {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 60}
VIDEO_SIZE = {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 100}
HALF = [0.5, 0.5, 0.5]

# Of Qwen/Qwen3-VL-8B-Instruct's, without tools.
TEMPLATE = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].content is string %}
        {{- messages[0].content }}
    {%- else %}
        {%- for content in messages[0].content %}
            {%- if 'text' in content %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set image_count = namespace(value=0) %}
{%- set video_count = namespace(value=0) %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for content in message.content %}
                {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                    {%- set image_count.value = image_count.value + 1 %}
                    {%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}
                    <|vision_start|><|image_pad|><|vision_end|>
                {%- elif content.type == 'video' or 'video' in content %}
                    {%- set video_count.value = video_count.value + 1 %}
                    {%- if add_vision_id %}Video {{ video_count.value }}: {% endif -%}
                    <|vision_start|><|video_pad|><|vision_end|>
                {%- elif 'text' in content %}
                    {{- content.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for content_item in message.content %}
                {%- if 'text' in content_item %}
                    {{- content_item.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def config(**changes: Any) -> Qwen3VLConfig:
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    }
    return Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 32, "rope_parameters": rope},
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": PATCH,
            "num_position_embeddings": 25,
            "deepstack_visual_indexes": [0, 2],
        },
        **(TOKENS | changes),
    )


def processor(tokenizer: Any) -> Any:
    steps = {"patch_size": PATCH, "image_mean": HALF, "image_std": HALF}
    return without_checks(Qwen3VLProcessor)(
        Qwen2VLImageProcessorPil(size=SIZE, **steps),
        tokenizer,
        video_processor("qwen3_vl", size=VIDEO_SIZE, **steps),
        chat_template=tokenizer.chat_template,
    )


def case(name: str, model: Any, config: Any) -> Case:
    """Of a family with this processor."""
    return Case(
        name=name,
        model=model,
        config=config,
        special=SPECIAL,
        template=TEMPLATE,
        processor=processor,
        files={
            "video_preprocessor_config.json": {
                "size": VIDEO_SIZE,
                "patch_size": PATCH,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": HALF,
                "image_std": HALF,
                "video_processor_type": "Qwen3VLVideoProcessor",
            }
        },
    )


CASES = (case("qwen3_vl", Qwen3VLForConditionalGeneration, config()),)


class TestQwen3VL(PatchTests, ChosenVideoTests, RetainedTests):
    cases = CASES

    def test_layers_with_deepstack_are_named(self, made: Made) -> None:
        manifest = made.model.package.manifest
        assert [segment.deepstack for segment in manifest.segments] == [(0, 1), ()]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_config": {"deepstack_visual_indexes": [2, 0]}}, "deepstack_visual_indexes"),
        ({"vision_config": {"deepstack_visual_indexes": [0, 4]}}, "to rise below 4"),
        ({"text_config": {"num_hidden_layers": 1}}, "at most 1 decoder layers"),
        ({"text_config": {"rope_parameters": {"mrope_section": None}}}, "with the sum 16"),
        ({"vision_config": {"temporal_patch_size": [2]}}, "temporal_patch_size to be one number"),
    ],
)
def test_variants_that_are_refused(
    make: Any, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    made = make(CASES[0])
    assert expected in refused(made, tmp_path, {"config.json": merged(made, changes)})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"patch_size": None}, "patch_size to be 4 as in config.json, found 16"),
        ({"resample": 0}, "resample to be one of 1, 2, 3 for videos"),
        ({"num_frames": 8}, "expected no num_frames, found 8"),
        ({"size": {"longest_edge": 5}}, "a shortest_edge and a larger longest_edge"),
    ],
)
def test_video_processors_that_are_refused(
    make: Any, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    name = "video_preprocessor_config.json"
    assert expected in refused(make(CASES[0]), tmp_path, {name: changes})


def test_without_sampling_all_frames_are_taken(make: Any) -> None:
    layout = make(CASES[0]).model.package.manifest.video.layout
    film = Video(clip(30, (8, 8)), 4.0)
    everything = replace(layout, fps=None).prepare(film, "x")
    assert layout.prepare(film, "x").tokens < everything.tokens
    times = re.findall(r"<([0-9.]+) seconds>", everything.replacement)
    assert times == [f"{0.5 * n + 0.125:.1f}" for n in range(15)]


def test_two_layers_are_cut_between_their_features(tmp_path: Path) -> None:
    """As in transformers' own test configurations; compared with transformers by the export."""
    two = config()
    two.text_config.num_hidden_layers = 2
    write_checkpoint(replace(CASES[0], config=two), tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--check"]
    assert main(arguments) == 0
    segments = load_package(tmp_path / "out").manifest.segments
    assert [segment.deepstack for segment in segments] == [(0,), (1,)]


def test_its_encoder_tells_attention_where_asked(make: Callable[[Case], Made]) -> None:
    telling.check_cells(make(CASES[0]))

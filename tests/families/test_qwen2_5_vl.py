"""Qwen2.5-VL: patches in windows, M-RoPE, videos with times as positions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from avl_export.checkpoint.checkpoint import open_checkpoint
from avl_export.families import load_family
from avl_runtime.vision.load.videos import Video
from families import telling
from families.chosen import ChosenVideoTests
from families.qwen import (
    SPECIAL,
    TEMPLATE,
    TEXT,
    TOKENS,
    PatchTests,
    merged,
    video_processor,
)
from families.retained import RetainedTests
from families.support import Case, Made, clip, refused, without_checks

PATCH, MIN, MAX = 4, 8 * 8 * 4, 8 * 8 * 60
SIZE = {"shortest_edge": MIN, "longest_edge": MAX}


def config() -> Qwen2_5_VLConfig:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    return Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": PATCH,
            "window_size": 4 * 2 * PATCH,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        tie_word_embeddings=True,
        **TOKENS,
    )


def processor(tokenizer: Any) -> Any:
    return without_checks(Qwen2_5_VLProcessor)(
        Qwen2VLImageProcessorPil(size=SIZE, patch_size=PATCH),
        tokenizer,
        video_processor("qwen2_vl", size=SIZE, patch_size=PATCH),
        chat_template=tokenizer.chat_template,
    )


LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}

CASES = (
    Case(
        name="qwen2_5_vl",
        model=Qwen2_5_VLForConditionalGeneration,
        config=config(),
        special=SPECIAL,
        template=TEMPLATE,
        processor=processor,
    ),
)


class TestQwen25VL(PatchTests, ChosenVideoTests, RetainedTests):
    cases = CASES
    # As on the hub.
    layouts = (((r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual.")),)

    def test_times_pass_the_text_behind(self, made: Made) -> None:
        """Otherwise the shared test of such videos would not test that."""
        prompt = made.model.processor.encode("What?", videos=[Video(clip(13, (40, 30)), 1.1)])
        assert prompt.positions[0].max() > prompt.positions[0, -1]
        assert prompt.next_position == prompt.positions.max() + 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_config": {"window_size": 7}}, "window_size of at least 2 patches of 4 pixels"),
        ({"vision_config": {"patch_size": [4, 4]}}, "patch_size to be one number"),
        ({"text_config": {"rope_parameters": {"mrope_section": [2, 3]}}}, "with the sum 8"),
        ({"text_config": {"rope_parameters": {"mrope_section": [2, 3, 4]}}}, "with the sum 8"),
        ({"text_config": {"model_type": "qwen2"}}, "decoder of qwen2_5_vl_text"),
        (
            {"text_config": {"rope_parameters": {"rope_type": "longrope", **LONG}}},
            "expected a rope_type of default",
        ),
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
        ({"patch_size": 8}, "patch_size to be 4 as in config.json, found 8"),
        ({"merge_size": 1}, "merge_size to be 2 as in config.json, found 1"),
        ({"temporal_patch_size": 1}, "temporal_patch_size to be 2"),
        ({"do_resize": False}, "do_resize to be true"),
        ({"size": {"height": 56, "width": 56}}, "a shortest_edge and a larger longest_edge"),
        ({"max_pixels": 10}, "a shortest_edge and a larger longest_edge"),
        ({"resample": 0}, "resample to be one of 1, 2, 3 for videos"),
        ({"num_frames": 8}, "expected no num_frames, found 8"),
        ({"cap_pixels_per_frame": True}, "expected no cap_pixels_per_frame"),
        ({"fps": 0}, "fps to be a number above 0"),
    ],
)
def test_processors_that_are_refused(
    make: Any, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(make(CASES[0]), tmp_path, {"preprocessor_config.json": changes})


def test_old_names_of_limits(make: Any, tmp_path: Path) -> None:
    """min_pixels and max_pixels, as in Qwen2.5-VL's own files, come first."""
    folder = tmp_path / "old"
    shutil.copytree(make(CASES[0]).folder, folder)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text()) | {"min_pixels": 100, "max_pixels": 10_000}
    path.write_text(json.dumps(settings))
    traits = load_family(open_checkpoint(str(folder)), torch.float32).traits
    for layout in (traits.image.layout, traits.video.layout):
        assert (layout.min_pixels, layout.max_pixels) == (100, 10_000)


def test_its_encoder_tells_attention_where_asked(make: Callable[[Case], Made]) -> None:
    telling.check_cells(make(CASES[0]))

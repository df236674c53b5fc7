"""Qwen2-VL: attention over whole frames, groups of a video's frames counted."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from families.qwen import (
    SPECIAL,
    TEMPLATE,
    TEXT,
    TOKENS,
    PatchTests,
    video_processor,
)
from families.support import Case, without_checks

PATCH = 4
SIZE = {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 60}


def config() -> Qwen2VLConfig:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    return Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "mlp_ratio": 2,
            "num_heads": 2,
            "patch_size": PATCH,
        },
        **TOKENS,
    )


def processor(tokenizer: Any) -> Any:
    return without_checks(Qwen2VLProcessor)(
        Qwen2VLImageProcessorPil(size=SIZE, patch_size=PATCH),
        tokenizer,
        video_processor("qwen2_vl", size=SIZE, patch_size=PATCH),
        chat_template=tokenizer.chat_template,
    )


CASES = (
    Case(
        name="qwen2_vl",
        model=Qwen2VLForConditionalGeneration,
        config=config(),
        special=SPECIAL,
        template=TEMPLATE,
        processor=processor,
    ),
)


class TestQwen2VL(PatchTests):
    cases = CASES

"""Qwen2.5-VL: patches in windows, M-RoPE, videos with times as positions."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from families.qwen import SPECIAL, TEXT, TOKENS, PatchTests, video_processor
from families.support import Case, without_checks

PATCH, MIN, MAX = 4, 8 * 8 * 4, 8 * 8 * 60
SIZE = {"shortest_edge": MIN, "longest_edge": MAX}

# As in Qwen/Qwen2.5-VL-7B-Instruct.
TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
        **TOKENS,
    )


def processor(tokenizer: Any) -> Any:
    return without_checks(Qwen2_5_VLProcessor)(
        Qwen2VLImageProcessorPil(size=SIZE, patch_size=PATCH),
        tokenizer,
        video_processor("qwen2_vl", size=SIZE, patch_size=PATCH),
        chat_template=tokenizer.chat_template,
    )


CASES = (
    Case(
        name="qwen2_5_vl",
        model=Qwen2_5_VLForConditionalGeneration,
        config=config(),
        special=SPECIAL,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        template=TEMPLATE,
        processor=processor,
    ),
)


class TestQwen25VL(PatchTests):
    cases = CASES

"""What the tests of GLM-4V and GLM-OCR share."""

from __future__ import annotations

from typing import Any

from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.glm46v.processing_glm46v import Glm46VProcessor

from families.support import without_checks

SPECIAL = (
    "<|endoftext|>",
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
)
TOKENS = {
    "image_token_id": SPECIAL.index("<|image|>"),
    "video_token_id": SPECIAL.index("<|video|>"),
    "image_start_token_id": SPECIAL.index("<|begin_of_image|>"),
    "image_end_token_id": SPECIAL.index("<|end_of_image|>"),
    "video_start_token_id": SPECIAL.index("<|begin_of_video|>"),
    "video_end_token_id": SPECIAL.index("<|end_of_video|>"),
}
PATCH = 4
SIZE = {"shortest_edge": 2 * 8 * 8 * 4, "longest_edge": 2 * 8 * 8 * 60}
# Of zai-org/GLM-4.6V-Flash's, without tools and thinking.
TEMPLATE = """\
[gMASK]<sop>
{%- for message in messages -%}
<|{{ message.role }}|>
{%- if message.content is string %}{{ '\\n' + message.content }}{% else %}{{ '\\n' }}
{%- for item in message.content %}
{%- if item.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif item.type == 'video' %}<|begin_of_video|><|video|><|end_of_video|>
{%- elif item.type == 'text' %}{{ item.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{{ '\\n' }}{% endif %}
"""
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
    },
}
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "patch_size": PATCH,
    "image_size": 5 * PATCH,
    "out_hidden_size": 64,
    "intermediate_size": 48,
}
COMMON: dict[str, Any] = {
    "special": SPECIAL,
    "eos": "<|user|>",
    "pad": "<|endoftext|>",
    "template": TEMPLATE,
}
TURNS = ((), ((97, 61),), ((40, 130), (64, 64), (5, 50)))


def processor(tokenizer: Any, video: Any = None, kind: Any = Glm46VProcessor) -> Any:
    """transformers' own; `video` is its processor of videos, for which torchvision is needed."""
    return without_checks(kind)(
        Glm46VImageProcessorPil(size=SIZE, patch_size=PATCH),
        tokenizer,
        video,
        chat_template=tokenizer.chat_template,
    )

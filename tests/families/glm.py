"""What the tests of GLM-4V and GLM-OCR share."""

from __future__ import annotations

from typing import Any

from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.glm46v.processing_glm46v import Glm46VProcessor

from families.qwen import PatchTests, video_processor
from families.support import call_processor, without_checks

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
VIDEO = {"size": {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 100}, "patch_size": PATCH}
TURNS = ((), ((97, 61),), ((40, 130), (64, 64), (5, 50)))


def processor(tokenizer: Any, video: Any = None, kind: Any = Glm46VProcessor) -> Any:
    """transformers' own; `video` is its processor of videos, for which torchvision is needed."""
    return without_checks(kind)(
        Glm46VImageProcessorPil(size=SIZE, patch_size=PATCH),
        tokenizer,
        video,
        chat_template=tokenizer.chat_template,
    )


def filmed(kind: str, of: Any = Glm46VProcessor) -> Any:
    """Makes transformers' processor, with that of videos of glm4v or glm46v."""
    return lambda tokenizer: processor(tokenizer, video_processor(kind, **VIDEO), of)


def video_files(name: str) -> dict[str, Any]:
    """The settings of videos as a checkpoint has them; `name` is of transformers' processor."""
    settings = {**VIDEO, "num_frames": 16, "video_processor_type": name}
    return {"video_preprocessor_config.json": settings}


def encode(of: Any, text: str, images: Any, videos: list[Any], **options: Any) -> Any:
    """Of frames whose rate nobody knows, transformers takes all, or refuses to choose."""
    unknown = {"do_sample_frames": False} if videos else {}
    return call_processor(of, text, images, videos, **unknown, **options)


class GlmTests(PatchTests):
    """`PatchTests` where frames become tokens of pictures."""

    def _shown(self) -> Any:
        """transformers refuses a picture and a video in one prompt, as both are the same tokens."""
        return [(images, videos) for images, videos in super()._shown() if not (images and videos)]

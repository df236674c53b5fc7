"""SmolVLM2: Idefics3 with videos, a tile for each frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import Traits
from avl_export.families.encoders.bucketed import give_places
from avl_export.families.hf import meta_model
from avl_export.families.idefics3 import (
    GRAPH,
    TEXT,
    Idefics3,
    check_parts,
    image_encoder,
    patches_along,
    tokens_along,
)
from avl_export.families.processors.preprocessing import named_token, special_tokens
from avl_export.families.processors.split import dated_frames
from avl_runtime.package.manifest import VideoEncoder
from avl_runtime.vision.split import TileText

# A conversation with a video is written by transformers' own template, whatever the checkpoint's.
CHOICE = (
    "{% set shown = namespace(video=false) %}{% for message in messages %}"
    "{% if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{% set shown.video = true %}{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}{% if shown.video +%}" + DEFAULT_CHAT_TEMPLATE + "{%+ else +%}"
)


@dataclass(frozen=True, slots=True)
class SmolVLM(Idefics3):
    """A SmolVLM2 checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = SmolVLMForConditionalGeneration


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> SmolVLM:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, SmolVLMConfig, SmolVLMForConditionalGeneration, dtype, check_parts
    )
    give_places(model, patches_along(config))
    text = TileText(
        named_token(checkpoint, "fake_image_token") or TEXT.border,
        named_token(checkpoint, "global_image_token") or TEXT.whole,
    )
    image, side = image_encoder(checkpoint, config, text), tokens_along(config)
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=with_videos(chat_template(checkpoint)),
        image=image,
        video=VideoEncoder(
            file=GRAPH,
            placeholder=named_token(checkpoint, "video_token") or "<video>",
            token=config.image_token_id,
            layout=dated_frames(checkpoint, config.vision_config.image_size, (side, side), text),
        ),
    )
    return SmolVLM("smolvlm", checkpoint.folder, traits, model, decoder)


def with_videos(template: str | None) -> str | None:
    """A chat template that gives conversations with a video to transformers' own."""
    if template is None or template == DEFAULT_CHAT_TEMPLATE:
        return template
    return f"{CHOICE}{template.removesuffix(chr(10))}{{%+ endif %}}"

"""Qwen3.5: pictures and videos as Qwen3-VL has them; most decoder layers keep a state."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.families.hf import meta_model
from avl_export.families.processors.patch_processing import patch_image, timed_video
from avl_export.families.qwen import FramesFamily, check_cut, qwen_traits, vision_patches
from avl_export.families.qwen3_vl import DeepstackEncoder


class Qwen35(FramesFamily):
    """A Qwen3.5 checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Qwen3_5ForConditionalGeneration
    encoder_class = DeepstackEncoder


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Qwen35:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, Qwen3_5Config, Qwen3_5ForConditionalGeneration, dtype, _check_parts
    )
    vision = config.vision_config
    patches = vision_patches(vision, int(vision.num_position_embeddings**0.5))
    image, video = patch_image(checkpoint, patches), timed_video(checkpoint, patches, config)
    traits = qwen_traits(checkpoint, config, image, video)
    return Qwen35("qwen3_5", checkpoint.folder, traits, model, decoder, patches)


def _check_parts(config: Any, where: str) -> None:
    check_cut(config.vision_config, where)

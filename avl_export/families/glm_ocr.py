"""GLM-OCR: GLM-4V with an encoder without learned positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import GlmOcrConfig, GlmOcrForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.families.glm4v import Glm4v
from avl_export.families.hf import meta_model
from avl_export.families.processors.patch_processing import grown_image, stamped_video
from avl_export.families.qwen import check_cut, qwen_traits, vision_patches


@dataclass(frozen=True, slots=True)
class GlmOcr(Glm4v):
    """A GLM-OCR checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = GlmOcrForConditionalGeneration


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> GlmOcr:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, GlmOcrConfig, GlmOcrForConditionalGeneration, dtype, _check_parts
    )
    patches = vision_patches(config.vision_config)
    image = grown_image(checkpoint, patches)
    video = stamped_video(checkpoint, patches, config)
    traits = qwen_traits(checkpoint, config, image, video, one_token=True)
    return GlmOcr("glm_ocr", checkpoint.folder, traits, model, decoder, patches)


def _check_parts(config: Any, where: str) -> None:
    check_cut(config.vision_config, where)

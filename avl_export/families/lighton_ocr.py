"""LightOnOCR: Pixtral's tower, merged cells without breaks, a Qwen3 decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import LightOnOcrConfig, LightOnOcrForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.families.encoders.pixtral import (
    check_pixtral,
)
from avl_export.families.hf import meta_model
from avl_export.families.pixtral import PixtralFamily, pixtral_patches, pixtral_traits
from avl_export.families.processors.line_processing import plain_lines


@dataclass(frozen=True, slots=True)
class LightOnOcr(PixtralFamily):
    """A LightOnOCR checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = LightOnOcrForConditionalGeneration
    tower: ClassVar[str] = "model.vision_encoder"
    projector: ClassVar[str] = "model.vision_projection"


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> LightOnOcr:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, LightOnOcrConfig, LightOnOcrForConditionalGeneration, dtype, _check_parts
    )
    layout = plain_lines(checkpoint, pixtral_patches(config))
    traits = pixtral_traits(checkpoint, config, layout)
    layers = config.vision_config.num_hidden_layers
    return LightOnOcr("lighton_ocr", checkpoint.folder, traits, model, decoder, layout, layers)


def _check_parts(config: Any, where: str) -> None:
    check_pixtral(config, where)

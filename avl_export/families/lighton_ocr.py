"""LightOnOCR: Pixtral's tower, merged cells without breaks, a Qwen3 decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import LightOnOcrConfig, LightOnOcrForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.pixtral import (
    PixtralFeatures,
    check_pixtral,
    pixtral_graph,
    reference_pictures,
)
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.line_processing import plain_lines
from avl_export.families.processors.preprocessing import special_tokens, token_text
from avl_runtime.package.manifest import ImageEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.lines import LinedImage
from avl_runtime.vision.patches import Patches


@dataclass(frozen=True, slots=True)
class LightOnOcr(HfFamily):
    """A LightOnOCR checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = LightOnOcrForConditionalGeneration
    layout: LinedImage

    def encoders(self) -> Sequence[EncoderGraph]:
        part, vision = self.model.get_submodule, self.config.vision_config
        features = PixtralFeatures(
            part("model.vision_encoder"), part("model.vision_projection"), vision.num_hidden_layers
        )
        return [pixtral_graph("vision.onnx", features, self.layout, vision, self.dtype)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        if prompt.media:
            inputs |= reference_pictures(prompt.media, self.layout)
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> LightOnOcr:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, LightOnOcrConfig, LightOnOcrForConditionalGeneration, dtype, _check_parts
    )
    patches = Patches(
        size=config.vision_config.patch_size,
        temporal=1,
        merge=config.spatial_merge_size,
        window=None,
        table=None,
    )
    layout = plain_lines(checkpoint, patches)
    token = config.image_token_id
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder("vision.onnx", token_text(checkpoint, token), token, layout),
    )
    return LightOnOcr("lighton_ocr", checkpoint.folder, traits, model, decoder, layout)


def _check_parts(config: Any, where: str) -> None:
    check_pixtral(config, where)

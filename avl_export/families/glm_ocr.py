"""GLM-OCR: pictures of any size, an encoder without learned positions, M-RoPE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import GlmOcrConfig, GlmOcrForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.families.base import EncoderGraph
from avl_export.families.encoders.glm import GlmEncoder
from avl_export.families.encoders.patch_encoder import frames_graph
from avl_export.families.hf import meta_model
from avl_export.families.processors.patch_processing import grown_image
from avl_export.families.qwen import VISION, QwenFamily, check_cut, qwen_traits
from avl_runtime.vision.patches import Patches


@dataclass(frozen=True, slots=True)
class GlmOcr(QwenFamily):
    """A GLM-OCR checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = GlmOcrForConditionalGeneration
    patches: Patches

    def encoders(self) -> Sequence[EncoderGraph]:
        module, channels = GlmEncoder(self.visual), self.config.vision_config.in_channels
        return [frames_graph(VISION, module, self.patches, channels, self.dtype)]


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> GlmOcr:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, GlmOcrConfig, GlmOcrForConditionalGeneration, dtype, _check_parts
    )
    vision = config.vision_config
    patches = Patches(
        size=vision.patch_size,
        temporal=vision.temporal_patch_size,
        merge=vision.spatial_merge_size,
        window=None,
        table=None,
    )
    traits = qwen_traits(checkpoint, config, grown_image(checkpoint, patches), None)
    return GlmOcr("glm_ocr", checkpoint.folder, traits, model, decoder, patches)


def _check_parts(config: Any, where: str) -> None:
    check_cut(config.vision_config, where)

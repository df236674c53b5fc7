"""Qianfan-OCR: InternVL's tiles with layers that are a list, a Qwen3 decoder, no videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import QianfanOCRConfig, QianfanOCRForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.processor_files import NESTED
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.intern_vit import check_tower
from avl_export.families.hf import meta_model
from avl_export.families.internvl import InternVL
from avl_export.families.processors.preprocessing import special_tokens
from avl_export.families.processors.tiled_image import picture_ends, tile_layout
from avl_runtime.package.manifest import ImageEncoder

PLACEHOLDER = "<image>"  # of transformers' processor, where its settings have none


@dataclass(frozen=True, slots=True)
class QianfanOcr(InternVL):
    """A Qianfan-OCR checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = QianfanOCRForConditionalGeneration

    def encoders(self) -> Sequence[EncoderGraph]:
        # Stochastic depth, which is for training, is all that tells one layer from another.
        for layer in self.model.get_submodule("model.vision_tower.layers").children():
            layer.drop_path1, layer.drop_path2 = nn.Identity(), nn.Identity()
        # Zero-argument super() knows no class here: slots make the decorator build a new one.
        return InternVL.encoders(self)


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> QianfanOcr:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, QianfanOCRConfig, QianfanOCRForConditionalGeneration, dtype, _check_parts
    )
    tile = config.vision_config.image_size[0]
    side = int(tile // config.vision_config.patch_size[0] * config.downsample_ratio)
    layout = tile_layout(checkpoint, tile, (side, side), picture_ends(checkpoint))
    found = checkpoint.read_json(NESTED).get("image_placeholder_token")
    placeholder = found if isinstance(found, str) and found else PLACEHOLDER
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder("vision.onnx", placeholder, config.image_token_id, layout),
    )
    return QianfanOcr("qianfan_ocr", checkpoint.folder, traits, model, decoder)


def _check_parts(config: Any, where: str) -> None:
    check_tower(config, "qianfan_ocr_vision", where)

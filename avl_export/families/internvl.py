"""InternVL in transformers' layout: InternViT, pixel shuffle, projector, Llama-like decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.intern_vit import TileFeatures, check_tower
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.preprocessing import (
    known_token,
    special_tokens,
    tile_defaults,
    token_text,
)
from avl_export.families.processors.tiled_image import picture_ends, tile_layout
from avl_export.families.processors.videos import frame_count, frame_processing
from avl_plugins.graph_io import PIXELS
from avl_runtime.package.manifest import ImageEncoder, VideoEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.tiles import FrameLines

FRAMES = 8  # what the model's authors show


@dataclass(frozen=True, slots=True)
class InternVL(HfFamily):
    """An InternVL checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = InternVLForConditionalGeneration

    def encoders(self) -> Sequence[EncoderGraph]:
        config = self.config
        total, asked = config.vision_config.num_hidden_layers, config.vision_feature_layer
        features = TileFeatures(
            self.model.get_submodule("model"),
            layers=asked if asked >= 0 else total + 1 + asked,
            normed=asked == -1,
            ratio=config.downsample_ratio,
        )
        vision = config.vision_config
        pixels = torch.empty(
            (2, vision.num_channels, *vision.image_size), dtype=self.dtype, device="meta"
        )
        dynamic = {PIXELS: {0: torch.export.Dim("tiles")}}
        return [EncoderGraph("vision.onnx", features, {PIXELS: pixels}, dynamic)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        if prompt.media:
            pixels = np.concatenate([media.inputs[PIXELS] for media in prompt.media])
            inputs["pixel_values"] = torch.from_numpy(pixels)
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> InternVL:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, InternVLConfig, InternVLForConditionalGeneration, dtype, _check_parts
    )
    vision = config.vision_config
    tile = vision.image_size[0]
    side = int(tile // vision.patch_size[0] * config.downsample_ratio)
    around = picture_ends(checkpoint)
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder(
            file="vision.onnx",
            placeholder=token_text(checkpoint, config.image_token_id),
            token=config.image_token_id,
            layout=tile_layout(checkpoint, tile, (side, side), around),
        ),
        video=VideoEncoder(
            file="vision.onnx",
            placeholder=known_token(checkpoint, "video_token"),
            token=config.image_token_id,
            layout=FrameLines(
                kind="frame_lines",
                processing=frame_processing(checkpoint, tile_defaults(tile), tile),
                frames=frame_count(checkpoint, FRAMES),
                grid=(side, side),
                around=around,
            ),
        ),
    )
    return InternVL("internvl", checkpoint.folder, traits, model, decoder)


def _check_parts(config: Any, where: str) -> None:
    check_tower(config, "internvl_vision", where)

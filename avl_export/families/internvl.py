"""InternVL 2.5, 3 and 3.5 in transformers' layout: InternViT, pixel shuffle, a Llama-like decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn
from transformers import InternVLConfig, InternVLForConditionalGeneration

from avl_export.checkpoint import Checkpoint
from avl_export.families.base import EncoderGraph, FamilyError, Traits
from avl_export.families.decoder import check_decoder, decoder_constants, decoder_dims
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.preprocessing import (
    chat_template,
    image_processor,
    processing_of,
    special_tokens,
    tile_defaults,
    token_text,
    video_processor,
)
from avl_export.families.videos import frame_count, frame_processing
from avl_runtime.manifest import ImageEncoder, VideoEncoder
from avl_runtime.processor import Prompt
from avl_runtime.vision.steps import ImageProcessing
from avl_runtime.vision.tiles import FrameLines, TiledImage

TEXT_TYPES = ("llama", "qwen2", "qwen3")
FRAMES = 8  # what the model's authors show
TILES = (1, 12)  # transformers' defaults
AROUND = {"start_image_token": "<img>", "end_image_token": "</img>"}
VIDEO = "<video>"


class TileFeatures(nn.Module):
    """InternViT up to the layer that is read, pixel shuffle, and the projector.

    Args:
        layers: encoder layers before the state that is read.
        normed: whether the tower's last norm follows.
        ratio: side of the shuffled grid of features, as a share of the grid's.
    """

    def __init__(self, inner: Any, layers: int, normed: bool, ratio: float) -> None:
        super().__init__()
        tower = inner.vision_tower
        self.embeddings = tower.embeddings
        self.layers = nn.ModuleList(tower.encoder.layer[:layers])
        self.norm = tower.layernorm if normed else nn.Identity()
        self.projector = inner.multi_modal_projector
        self.ratio = ratio

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[tiles, 3, H, W] -> [tiles, tokens, hidden]."""
        hidden = self.embeddings(pixel_values)
        for layer in self.layers:
            hidden = layer(hidden)
        patches = self.norm(hidden)[:, 1:]  # without the class token
        return cast(torch.Tensor, self.projector(self._shuffled(patches)))

    def _shuffled(self, patches: torch.Tensor) -> torch.Tensor:
        """[tiles, side**2, C] -> [tiles, (side * ratio)**2, C / ratio**2]."""
        tiles, count, channels = patches.shape
        side, small = int(count**0.5), int(count**0.5 * self.ratio)
        step = side // small
        # Each small cell takes the channels of step x step patches, column by column of the grid
        # transformers shuffles twice, which puts a row's patches innermost.
        split = patches.reshape(tiles, small, step, small, step, channels)
        return split.permute(0, 1, 3, 2, 4, 5).reshape(tiles, small * small, -1)

"""Qwen2-VL: pictures of any size, attention over whole frames, frames of a video counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.families.encoders.patch_encoder import (
    PatchRotary,
    embed_patches,
    run_block,
)
from avl_export.families.hf import meta_model
from avl_export.families.processors.patch_processing import patch_image, patch_video
from avl_export.families.qwen import FramesFamily, check_cut, qwen_traits, vision_patches
from avl_export.families.replicate import repeat


class FrameEncoder(nn.Module):
    """The encoder on frames whose patches lie cell by cell."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.patch_embed = visual.patch_embed
        self.rotary = PatchRotary(visual.rotary_pos_emb)
        self.blocks = visual.blocks
        self.merger = visual.merger
        self.parts = visual.spatial_merge_size**2  # a frame has whole cells, no more is known

    def forward(self, pixel_values: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """[T, P, D] and [P, 2], see `Patches.inputs` -> features [T, cells, C]."""
        hidden = embed_patches(self.patch_embed.proj, pixel_values)
        turns = self.rotary(position_ids, hidden)
        for block in self.blocks:
            hidden = repeat(run_block, block, hidden, turns, self.parts)
        cells = self.merger.ln_q(hidden).reshape(hidden.shape[0], -1, self.merger.hidden_size)
        return cast(torch.Tensor, self.merger.mlp(cells))


@dataclass(frozen=True, slots=True)
class Qwen2VL(FramesFamily):
    """A Qwen2-VL checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Qwen2VLForConditionalGeneration
    encoder_class: ClassVar[type[nn.Module]] = FrameEncoder


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Qwen2VL:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, Qwen2VLConfig, Qwen2VLForConditionalGeneration, dtype, _check_parts
    )
    patches = vision_patches(config.vision_config)
    image, video = patch_image(checkpoint, patches), patch_video(checkpoint, patches, None)
    traits = qwen_traits(checkpoint, config, image, video)
    return Qwen2VL("qwen2_vl", checkpoint.folder, traits, model, decoder, patches)


def _check_parts(config: Any, where: str) -> None:
    check_cut(config.vision_config, where)

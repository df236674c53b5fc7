"""Qwen2.5-VL: pictures of any size, attention in windows, times of frames as positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.base import EncoderGraph
from avl_export.families.encoders.windows import windows_graph
from avl_export.families.hf import meta_model
from avl_export.families.processors.patch_processing import patch_image, patch_video
from avl_export.families.qwen import (
    VISION,
    QwenFamily,
    check_cut,
    qwen_traits,
    vision_patches,
)
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision import Media
from avl_runtime.vision.patches import Patches


@dataclass(frozen=True, slots=True)
class Qwen25VL(QwenFamily):
    """A Qwen2.5-VL checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Qwen2_5_VLForConditionalGeneration
    patches: Patches

    def encoders(self) -> Sequence[EncoderGraph]:
        channels = self.config.vision_config.in_channels
        return [windows_graph(VISION, self.visual, self.patches, channels, self.dtype)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        # Zero-argument super() knows no class here: slots make the decorator build a new one.
        inputs = QwenFamily.reference_inputs(self, prompt)
        per_second = self.config.vision_config.tokens_per_second
        steps = [_step(media) for media in prompt.media if media.kind == "video"]
        if steps:
            inputs["second_per_grid_ts"] = torch.tensor(steps) / per_second
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Qwen25VL:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, dtype, _check_parts
    )
    vision = config.vision_config
    window = vision.window_size // vision.spatial_merge_size // vision.patch_size
    patches = vision_patches(vision, window=window)
    traits = qwen_traits(
        checkpoint,
        config,
        patch_image(checkpoint, patches),
        patch_video(checkpoint, patches, vision.tokens_per_second),
    )
    return Qwen25VL("qwen2_5_vl", checkpoint.folder, traits, model, decoder, patches)


def _check_parts(config: Any, where: str) -> None:
    vision = config.vision_config
    check_cut(vision, where)
    if vision.window_size < vision.patch_size * vision.spatial_merge_size:
        raise FamilyError(
            f"{where}: expected a window_size of at least {vision.spatial_merge_size} patches of "
            f"{vision.patch_size} pixels, found {vision.window_size}; fix config.json"
        )


def _step(media: Media) -> float:
    """A distance in time by which transformers would place a video's groups of frames as we did.

    Positions are whole numbers, so a range of distances gives the same ones: its middle.
    """
    rows, columns = media.cells.grid
    times = media.blocks[0].positions[0, :: rows * columns][1:]
    count = np.arange(1, len(times) + 1)
    lowest = (times / count).max(initial=0.0)
    highest = ((times + 1) / count).min(initial=lowest + 1)
    return float((lowest + highest) / 2)

"""Qwen2.5-VL: pictures of any size, attention in windows, times of frames as positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.base import EncoderGraph
from avl_export.families.encoders.frame_received import received, told, watched
from avl_export.families.encoders.patch_encoder import (
    PatchRotary,
    attend_frames,
    attend_windows,
    embed_patches,
    rms_norm,
)
from avl_export.families.hf import meta_model
from avl_export.families.processors.patch_processing import patch_image, patch_video
from avl_export.families.qwen import (
    VISION,
    QwenFamily,
    check_cut,
    qwen_traits,
    vision_patches,
)
from avl_export.families.replicate import repeat
from avl_plugins.graph_io import ORDER, PATCH_POSITIONS, PIXELS, WINDOW_MASK
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision import Media
from avl_runtime.vision.patches import Patches

MOST_PARTS = 16  # of a frame's queries; with them the largest picture takes 1 GiB of scores


class WindowEncoder(nn.Module):
    """The encoder on frames whose patches lie window by window, some places empty.

    `size` is the number of places in a window. With `tells` attention is put out too.
    """

    def __init__(self, visual: Any, size: int, tells: bool = False) -> None:
        super().__init__()
        self.patch_embed = visual.patch_embed
        self.rotary = PatchRotary(visual.rotary_pos_emb)
        self.blocks = visual.blocks
        self.merger = visual.merger
        self.merge = visual.spatial_merge_unit
        self.full = frozenset(visual.fullatt_block_indexes)
        told_of = tells and self.full
        self.watched = watched(len(self.blocks), sorted(self.full)) if told_of else ()
        self.parts = max(n for n in range(1, MOST_PARTS + 1) if size % n == 0)

    def forward(
        self,
        pixel_values: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor,
        order: torch.Tensor,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """[T, W, S, D], [W, S, 2], [W, S] and [cells], see `Patches.inputs`.

        Returns:
            features [T, cells, C] and, where they are told, attention [T, cells, 3].
        """
        hidden = embed_patches(self.patch_embed.proj, pixel_values.flatten(1, 2))
        turns = self.rotary(position_ids.flatten(0, 1), hidden)
        everywhere = mask.flatten()
        found: dict[int, torch.Tensor] = {}
        for number, block in enumerate(self.blocks):
            if number in self.watched:
                normed = rms_norm(block.norm1, hidden)
                found[number] = received(block.attn, normed, turns, everywhere, self.parts)
            if number in self.full:
                whole = (attend_frames, turns, everywhere, self.parts)
                hidden = repeat(_run_block, block, hidden, *whole)
            else:
                hidden = repeat(_run_block, block, hidden, attend_windows, turns, mask)
        normed = rms_norm(self.merger.ln_q, hidden)
        cells = normed.reshape(hidden.shape[0], -1, self.merger.hidden_size)
        features = cast(torch.Tensor, self.merger.mlp(cells.index_select(1, order)))
        if not self.watched:
            return features
        late, middle = (found[number] for number in self.watched)
        return features, told(late, middle, self.merge).index_select(1, order)


def _run_block(
    block: Any, hidden: torch.Tensor, attend: Callable[..., torch.Tensor], *how: Any
) -> torch.Tensor:
    hidden = hidden + attend(block.attn, rms_norm(block.norm1, hidden), *how)
    return hidden + cast(torch.Tensor, block.mlp(rms_norm(block.norm2, hidden)))


@dataclass(frozen=True, slots=True)
class Qwen25VL(QwenFamily):
    """A Qwen2.5-VL checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Qwen2_5_VLForConditionalGeneration
    patches: Patches

    def encoders(self) -> Sequence[EncoderGraph]:
        side = cast(int, self.patches.window) * self.patches.merge
        windows, size = 3, side * side
        frame, window, cell = (torch.export.Dim(name) for name in ("frames", "windows", "cells"))
        width = self.config.vision_config.in_channels * self.patches.temporal * self.patches.size**2
        example = {
            PIXELS: torch.empty((2, windows, size, width), dtype=self.dtype, device="meta"),
            PATCH_POSITIONS: torch.empty((windows, size, 2), dtype=torch.int64, device="meta"),
            WINDOW_MASK: torch.empty((windows, size), dtype=self.dtype, device="meta"),
            ORDER: torch.empty(5, dtype=torch.int64, device="meta"),
        }
        dynamic = {
            PIXELS: {0: frame, 1: window},
            PATCH_POSITIONS: {0: window},
            WINDOW_MASK: {0: window},
            ORDER: {0: cell},
        }
        plain, telling = (WindowEncoder(self.visual, size, tells) for tells in (False, True))
        attending = telling if telling.watched else None
        return [EncoderGraph(VISION, plain, example, dynamic, attending=attending)]

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

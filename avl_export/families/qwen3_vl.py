"""Qwen3-VL: pictures of any size, features for several decoder layers, times of frames as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.base import EncoderGraph
from avl_export.families.encoders.patch_encoder import (
    PatchRotary,
    Turns,
    attend_frames,
    embed_patches,
)
from avl_export.families.hf import meta_model
from avl_export.families.processors.patch_processing import patch_image, timed_video
from avl_export.families.qwen import (
    VISION,
    QwenFamily,
    check_cut,
    example_patches,
    qwen_traits,
)
from avl_export.families.replicate import repeat
from avl_plugins.graph_io import (
    DEEPSTACK_FEATURES,
    FEATURES,
    PATCH_POSITIONS,
    PIXELS,
    TABLE_ROWS,
    TABLE_SHARES,
)
from avl_runtime.vision.patches import Patches


class DeepstackEncoder(nn.Module):
    """The encoder, with what some of its layers put out merged into features of their own."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.patch_embed = visual.patch_embed
        self.pos_embed = visual.pos_embed
        self.rotary = PatchRotary(visual.rotary_pos_emb)
        self.blocks = visual.blocks
        self.merger = visual.merger
        self.mergers = visual.deepstack_merger_list
        self.tapped = tuple(visual.deepstack_visual_indexes)
        self.parts = visual.spatial_merge_size**2  # a frame has whole cells, no more is known

    def forward(
        self,
        pixel_values: torch.Tensor,
        position_ids: torch.Tensor,
        places: torch.Tensor,
        shares: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """[T, P, D], [P, 2], [P, 4] and [P, 4], see `Patches.inputs`.

        Returns:
            features [T, cells, C] and, where layers are tapped, [K, T * cells, C].
        """
        hidden = embed_patches(self.patch_embed.proj, pixel_values)
        learned = F.embedding(places, self.pos_embed.weight) * shares[..., None]
        hidden = hidden + learned.sum(1)
        turns = self.rotary(position_ids, hidden)
        tapped: list[torch.Tensor] = []
        for number, block in enumerate(self.blocks):
            hidden = repeat(_run_block, block, hidden, turns, self.parts)
            if number in self.tapped:
                tapped.append(self.mergers[len(tapped)](hidden))
        features = self.merger(hidden).reshape(
            hidden.shape[0], -1, self.merger.linear_fc2.out_features
        )
        if not tapped:
            return (features,)
        return features, torch.stack(tapped)


def _run_block(block: Any, hidden: torch.Tensor, turns: Turns, parts: int) -> torch.Tensor:
    hidden = hidden + attend_frames(block.attn, block.norm1(hidden), turns, None, parts)
    return cast(torch.Tensor, hidden + block.mlp(block.norm2(hidden)))


@dataclass(frozen=True, slots=True)
class Qwen3VL(QwenFamily):
    """A Qwen3-VL checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Qwen3VLForConditionalGeneration
    patches: Patches

    def encoders(self) -> Sequence[EncoderGraph]:
        frame, cell = torch.export.Dim("frames"), torch.export.Dim("cells")
        merged = self.patches.merge**2
        patch, count = merged * cell, merged * 5
        vision = self.config.vision_config
        example = {
            PIXELS: example_patches(self.patches, (2, count), vision, self.dtype),
            PATCH_POSITIONS: torch.empty((count, 2), dtype=torch.int64, device="meta"),
            TABLE_ROWS: torch.empty((count, 4), dtype=torch.int64, device="meta"),
            TABLE_SHARES: torch.empty((count, 4), dtype=self.dtype, device="meta"),
        }
        dynamic: dict[str, dict[int, Any]] = {name: {0: patch} for name in example}
        dynamic[PIXELS] = {0: frame, 1: patch}
        outputs = [FEATURES]
        outputs += [DEEPSTACK_FEATURES] if self.traits.deepstack else []
        module = DeepstackEncoder(self.visual)
        return [EncoderGraph(VISION, module, example, dynamic, tuple(outputs))]


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Qwen3VL:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, Qwen3VLConfig, Qwen3VLForConditionalGeneration, dtype, _check_parts
    )
    vision = config.vision_config
    patches = Patches(
        size=vision.patch_size,
        temporal=vision.temporal_patch_size,
        merge=vision.spatial_merge_size,
        window=None,
        table=int(vision.num_position_embeddings**0.5),
    )
    traits = qwen_traits(
        checkpoint,
        config,
        patch_image(checkpoint, patches),
        timed_video(checkpoint, patches, config),
        deepstack=tuple(range(len(vision.deepstack_visual_indexes))),
    )
    return Qwen3VL("qwen3_vl", checkpoint.folder, traits, model, decoder, patches)


def _check_parts(config: Any, where: str) -> None:
    vision, text = config.vision_config, config.text_config
    check_cut(vision, where)
    taps = vision.deepstack_visual_indexes
    fits = sorted(set(taps)) == list(taps) and all(0 <= n < vision.depth for n in taps)
    if not fits or len(taps) > text.num_hidden_layers:
        raise FamilyError(
            f"{where}: expected deepstack_visual_indexes to rise below {vision.depth}, one for "
            f"each of at most {text.num_hidden_layers} decoder layers, found {list(taps)}; "
            "fix config.json"
        )

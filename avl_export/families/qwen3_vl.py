"""Qwen3-VL: pictures of any size, features for several decoder layers, times of frames as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.base import EncoderGraph
from avl_export.families.encoders.frame_received import received, told, watched
from avl_export.families.encoders.patch_encoder import (
    PatchRotary,
    embed_patches,
    frames_graph,
    mix_positions,
    run_block,
)
from avl_export.families.hf import meta_model
from avl_export.families.processors.patch_processing import patch_image, timed_video
from avl_export.families.qwen import (
    VISION,
    QwenFamily,
    check_cut,
    qwen_traits,
    vision_patches,
)
from avl_export.families.replicate import repeat
from avl_plugins.graph_io import DEEPSTACK_FEATURES, FEATURES
from avl_runtime.vision.patches import Patches


class DeepstackEncoder(nn.Module):
    """The encoder, with what some of its layers put out merged into features of their own.

    With `tells` attention is put out too.
    """

    def __init__(self, visual: Any, tells: bool = False) -> None:
        super().__init__()
        self.patch_embed = visual.patch_embed
        self.pos_embed = visual.pos_embed
        self.rotary = PatchRotary(visual.rotary_pos_emb)
        self.blocks = visual.blocks
        self.merger = visual.merger
        self.mergers: Any = getattr(visual, "deepstack_merger_list", None)
        self.tapped = tuple(getattr(visual, "deepstack_visual_indexes", ()))
        self.parts = visual.spatial_merge_size**2  # a frame has whole cells, no more is known
        self.watched = watched(len(self.blocks)) if tells else ()

    def forward(
        self,
        pixel_values: torch.Tensor,
        position_ids: torch.Tensor,
        places: torch.Tensor,
        shares: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """[T, P, D], [P, 2], [P, 4] and [P, 4], see `Patches.inputs`.

        Returns:
            features [T, cells, C], where layers are tapped [K, T * cells, C], and where it is told
            attention [T, cells, 3].
        """
        hidden = embed_patches(self.patch_embed.proj, pixel_values)
        hidden = hidden + mix_positions(self.pos_embed.weight, places, shares)
        turns = self.rotary(position_ids, hidden)
        tapped: list[torch.Tensor] = []
        found: dict[int, torch.Tensor] = {}
        for number, block in enumerate(self.blocks):
            if number in self.watched:
                normed = block.norm1(hidden)
                found[number] = received(block.attn, normed, turns, None, self.parts)
            hidden = repeat(run_block, block, hidden, turns, self.parts)
            if number in self.tapped:
                tapped.append(self.mergers[len(tapped)](hidden))
        features = self.merger(hidden).reshape(
            hidden.shape[0], -1, self.merger.linear_fc2.out_features
        )
        stacked = (torch.stack(tapped),) if tapped else ()
        if not self.watched:
            return features, *stacked
        late, middle = (found[number] for number in self.watched)
        return features, *stacked, told(late, middle, self.parts)


@dataclass(frozen=True, slots=True)
class Qwen3VL(QwenFamily):
    """A Qwen3-VL checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Qwen3VLForConditionalGeneration
    patches: Patches

    def encoders(self) -> Sequence[EncoderGraph]:
        module, channels = DeepstackEncoder(self.visual), self.config.vision_config.in_channels
        outputs = (FEATURES, DEEPSTACK_FEATURES) if self.traits.deepstack else (FEATURES,)
        telling = DeepstackEncoder(self.visual, tells=True)
        return [frames_graph(VISION, module, self.patches, channels, self.dtype, outputs, telling)]


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Qwen3VL:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    return load_as(Qwen3VL, Qwen3VLConfig, checkpoint, dtype)


def load_as(
    kind: type[Qwen3VL],
    config_class: Any,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    *,
    experts: bool = False,
) -> Qwen3VL:
    """As `load`, of a family whose decoder alone is another; `experts` as for `meta_model`."""
    config, model, decoder = meta_model(
        checkpoint, config_class, kind.model_class, dtype, _check_parts, experts=experts
    )
    vision = config.vision_config
    patches = vision_patches(vision, int(vision.num_position_embeddings**0.5))
    traits = qwen_traits(
        checkpoint,
        config,
        patch_image(checkpoint, patches),
        timed_video(checkpoint, patches, config),
        deepstack=tuple(range(len(vision.deepstack_visual_indexes))),
    )
    name = config_class.model_type
    return kind(name, checkpoint.folder, traits, model, decoder, patches)


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

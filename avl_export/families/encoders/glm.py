"""The encoder of GLM-4V and GLM-OCR: whole frames, four patches merged by a convolution."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from avl_export.families.encoders.frame_attention import frame_attention
from avl_export.families.encoders.patch_encoder import (
    PatchRotary,
    Turns,
    embed_patches,
    mix_positions,
)
from avl_export.families.replicate import repeat


class GlmEncoder(nn.Module):
    """The encoder on frames whose patches lie cell by cell.

    GLM-4V's learns positions, GLM-OCR's does not.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.patch_embed = visual.patch_embed
        self.first_norm = getattr(visual, "post_conv_layernorm", None)
        self.embeddings = getattr(visual, "embeddings", None)
        self.rotary = PatchRotary(visual.rotary_pos_emb)
        self.blocks = visual.blocks
        self.last_norm = visual.post_layernorm
        self.downsample = visual.downsample
        self.merger = visual.merger
        self.parts = visual.spatial_merge_size**2  # a frame has whole cells, no more is known

    def forward(
        self,
        pixel_values: torch.Tensor,
        position_ids: torch.Tensor,
        places: torch.Tensor | None = None,
        shares: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[T, P, D], [P, 2], [P, 16] and [P, 16], see `Patches.inputs` -> [T, cells, C]."""
        hidden = embed_patches(self.patch_embed.proj, pixel_values)
        if self.first_norm is not None:
            hidden = _rms_norm(self.first_norm, hidden)
        if self.embeddings is not None and places is not None and shares is not None:
            hidden = hidden + mix_positions(
                self.embeddings.position_embedding.weight, places, shares
            )
        turns = self.rotary(position_ids, hidden)
        for block in self.blocks:
            hidden = repeat(_run_block, block, hidden, turns, self.parts)
        normed = _rms_norm(self.last_norm, hidden)
        frames, _, width = normed.shape
        cells = normed.reshape(frames, -1, self.parts, width).transpose(2, 3).flatten(2)
        # A convolution whose kernel is a cell.
        weight = self.downsample.weight
        merged = F.linear(cells, weight.reshape(weight.shape[0], -1), self.downsample.bias)
        return cast(torch.Tensor, self.merger(merged))


def _run_block(block: Any, hidden: torch.Tensor, turns: Turns, parts: int) -> torch.Tensor:
    hidden = hidden + _attend(block.attn, _rms_norm(block.norm1, hidden), turns, parts)
    return cast(torch.Tensor, hidden + block.mlp(_rms_norm(block.norm2, hidden)))


def _attend(attention: Any, hidden: torch.Tensor, turns: Turns, parts: int) -> torch.Tensor:
    """Every patch attends to its whole frame."""
    heads, scale = attention.num_heads, attention.scaling
    query, key, value = attention.qkv(hidden).chunk(3, dim=-1)
    if hasattr(attention, "q_norm"):
        query, key = (
            _rms_norm(norm, states.reshape(*states.shape[:2], heads, -1)).flatten(2)
            for norm, states in ((attention.q_norm, query), (attention.k_norm, key))
        )
    query, key = (
        torch.onnx.ops.rotary_embedding(states, *turns, num_heads=heads) for states in (query, key)
    )
    seen = frame_attention(query, key, value, None, heads, parts, scale)
    return cast(torch.Tensor, attention.proj(seen))


def _rms_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)

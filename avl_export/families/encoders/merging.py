"""MiniCPM-V's tower: SigLIP, in which each four patches may become one behind a layer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from avl_export.families.encoders.patch_encoder import embed_patches, run_siglip
from avl_export.families.replicate import repeat


class MergingEncoder(nn.Module):
    """Tower and merger on parts of one size, see `SlicedImage`.

    Args:
        merged_after: the layer behind which four patches become one; None: they stay four.
    """

    def __init__(self, inner: Any, merged_after: int | None) -> None:
        super().__init__()
        tower = inner.vision_tower
        self.projection = tower.embeddings.patch_embedding
        self.table = tower.embeddings.position_embedding
        layers = list(tower.encoder.layers)
        first = 0 if merged_after is None else merged_after + 1
        self.first, self.later = nn.ModuleList(layers[:first]), nn.ModuleList(layers[first:])
        self.windows = tower.vit_merger if first else None
        self.parts = 4 if first else 2  # P is a multiple of their square
        self.norm, self.out = tower.post_layernorm, inner.merger

    def forward(self, pixel_values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """[T, P, D] and [P] -> features [T, cells, C]."""
        hidden = embed_patches(self.projection, pixel_values) + self.table(places)
        for layer in self.first:
            hidden = repeat(run_siglip, layer, hidden, self.parts)
        if self.windows is not None:
            hidden = self._merged(self.windows, hidden)
        for layer in self.later:
            hidden = repeat(run_siglip, layer, hidden, self.parts)
        normed = self.norm(hidden)
        (outer,) = self.out.mlp
        cells = outer.pre_norm(normed.reshape(normed.shape[0], -1, 4 * normed.shape[-1]))
        return cast(torch.Tensor, outer.linear_2(outer.act(outer.linear_1(cells))))

    def _merged(self, merger: Any, hidden: torch.Tensor) -> torch.Tensor:
        """[T, P, C] -> [T, P / 4, C]: attention among four patches, which then become one."""
        size = hidden.shape[-1]
        windows = hidden.reshape(hidden.shape[0], -1, 4, size)
        seen = _attended(merger.self_attn, merger.layer_norm1(windows))
        windows = windows + merger.self_attn.out_proj(seen)
        flat = merger.pre_norm(windows.flatten(2))
        inner = merger.linear_2(merger.act(merger.linear_1(flat)))
        return cast(torch.Tensor, inner + windows.mean(2))


def _attended(attention: Any, normed: torch.Tensor) -> torch.Tensor:
    """Attention among the few rows of each window, [T, windows, 4, C]."""
    query, key, value = (
        project(normed).unflatten(-1, (attention.num_heads, -1)).transpose(2, 3)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = (query @ key.transpose(-1, -2) * attention.scaling).softmax(-1)
    return cast(torch.Tensor, (scores @ value).transpose(2, 3).flatten(3))

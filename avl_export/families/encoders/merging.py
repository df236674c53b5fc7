"""MiniCPM-V's tower: SigLIP whose patches become one of each four, after one of its layers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from avl_export.families.encoders.patch_encoder import embed_patches, run_siglip
from avl_export.families.replicate import repeat
from avl_runtime.vision.slices import MERGE


class MergingEncoder(nn.Module):
    """Tower and merger on parts of one size, see `SlicedImage`."""

    def __init__(self, inner: Any, merged_after: int) -> None:
        super().__init__()
        tower = inner.vision_tower
        self.projection = tower.embeddings.patch_embedding
        self.table = tower.embeddings.position_embedding
        layers = list(tower.encoder.layers)
        self.first = nn.ModuleList(layers[: merged_after + 1])
        self.later = nn.ModuleList(layers[merged_after + 1 :])
        self.windows, self.norm, self.out = tower.vit_merger, tower.post_layernorm, inner.merger

    def forward(self, pixel_values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """[T, P, D] and [P] -> features [T, cells, C]."""
        hidden = embed_patches(self.projection, pixel_values) + self.table(places)
        for layer in self.first:
            hidden = repeat(run_siglip, layer, hidden, MERGE)
        hidden = self._merged(hidden)
        for layer in self.later:
            hidden = repeat(run_siglip, layer, hidden, MERGE)
        normed = self.norm(hidden)
        (outer,) = self.out.mlp
        cells = outer.pre_norm(normed.reshape(normed.shape[0], -1, 4 * normed.shape[-1]))
        return cast(torch.Tensor, outer.linear_2(outer.act(outer.linear_1(cells))))

    def _merged(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, P, C] -> [T, P / 4, C]: attention among four patches, which then become one."""
        merger, size = self.windows, hidden.shape[-1]
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

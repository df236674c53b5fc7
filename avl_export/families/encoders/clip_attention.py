"""What attention the tokens of a CLIP or SigLIP tower receive, beside their features."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from avl_export.families.encoders.clip import CLIP, ClipFeatures

DEPTH = 3, 8  # where the middle layer lies: HiPrune's 9th of 24 (arXiv 2508.00553)


class ClipAttention(nn.Module):
    """Features as `ClipFeatures` gives them, and attention as `policies.Picture` has it.

    Args:
        features: the tower up to the layers that are read, and the projector.
        layers: of the whole tower.
        classed: whether its first token is a class token.
    """

    def __init__(self, features: ClipFeatures, layers: int, classed: bool) -> None:
        super().__init__()
        self.features = features
        self.late = max(features.read) - 1
        self.middle = min(self.late, middle_of(layers))
        self.classed = classed

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[images, 3, H, W] -> features [images, tokens, hidden], attention [images, tokens, 3]."""
        states = self.features.states(pixel_values)
        late = self._attention(states, self.late)
        received = late.mean(1)
        by_class = late[:, 0] if self.classed else received
        found = torch.stack([by_class, received, self._attention(states, self.middle).mean(1)], -1)
        return self.features.features(states), found[:, self.features.first :]

    def _attention(self, states: list[torch.Tensor], number: int) -> torch.Tensor:
        """[images, N, N] float32: in a layer, what each token gives each, mean of heads."""
        layer: Any = self.features.layers[number]
        attention, normed = layer.self_attn, layer.layer_norm1(states[number])
        query, key = (
            projected(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for projected in (attention.q_proj, attention.k_proj)
        )
        scores: torch.Tensor = (query * attention.scale) @ key.transpose(-1, -2)
        return scores.float().softmax(-1).mean(1)


class TilesAttention(nn.Module):
    """The same of tiles and a line break, to which nobody attends; see `TilesAndBreak`."""

    def __init__(self, tower: ClipAttention, line_break: nn.Parameter) -> None:
        super().__init__()
        self.tower = tower
        self.line_break = line_break

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[tiles, 3, H, W] -> [tiles * side * side + 1, C], [tiles * side * side + 1, 3]."""
        features, attention = self.tower(pixel_values)
        joined = torch.cat([features.flatten(0, 1), self.line_break[None]])
        none = torch.zeros_like(attention[0, :1])
        return joined, torch.cat([attention.flatten(0, 1), none])


def attended(features: ClipFeatures, vision: Any) -> ClipAttention | None:
    """`features` of the tower that `vision` configures, with attention.

    None where all features are those in front of the first layer, which no attention has seen.
    """
    if not max(features.read):
        return None
    return ClipAttention(features, vision.num_hidden_layers, vision.model_type == CLIP)


def tiles_attended(
    features: ClipFeatures, vision: Any, line_break: nn.Parameter
) -> TilesAttention | None:
    """As `attended`, of tiles and a line break."""
    tower = attended(features, vision)
    return None if tower is None else TilesAttention(tower, line_break)


def middle_of(layers: int) -> int:
    """The layer at 3/8 of a tower's depth, counted from 0: the 9th of 24, the 2nd of 4."""
    part, whole = DEPTH
    return max(0, (2 * part * layers + whole) // (2 * whole) - 1)

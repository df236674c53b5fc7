"""The tower of Idefics3 and SmolVLM: SigLIP whose patches share out the learned positions."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from avl_export.families.replicate import repeat

PLACES = "model.vision_model.embeddings.place_ids"


class BucketedFeatures(nn.Module):
    """Tower, pixel shuffle and projection of an Idefics3Model or SmolVLMModel.

    The model has `PLACES`, see `give_places`.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        tower = inner.vision_model
        self.embeddings = tower.embeddings
        self.layers = tower.encoder.layers
        self.norm = tower.post_layernorm
        self.connector = inner.connector

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[tiles, 3, H, W], H and W as they are in training -> [tiles, tokens, hidden]."""
        parts: Any = self.embeddings
        patches = parts.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        hidden = patches + parts.position_embedding(parts.place_ids)
        for layer in self.layers:
            hidden = repeat(_encode, layer, hidden)
        return cast(torch.Tensor, self.connector(self.norm(hidden)))


def _encode(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, layer(hidden, None))


def give_places(model: nn.Module, side: int) -> None:
    """Put the buffer `PLACES` for tiles of side x side patches into `model` on the meta device."""
    owner, _, name = PLACES.rpartition(".")
    places = torch.empty(side * side, dtype=torch.int64, device="meta")
    model.get_submodule(owner).register_buffer(name, places, persistent=False)


def bucketed_constants(side: int) -> dict[str, torch.Tensor]:
    """Which learned position each patch of a tile takes, side x side of them both ways.

    It is not always its own: transformers compares fractions in float32, whose rounding gives some
    rows their neighbour's (ten of 25, but none of the 26, 27 and 32 of published models).
    """
    edges = torch.arange(1 / side, 1.0, 1 / side)
    parts = torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor(side))
    buckets = torch.bucketize(parts.clamp(max=1.0 - 1e-6), edges, right=True)
    return {PLACES: (buckets[:, None] * side + buckets).flatten()}

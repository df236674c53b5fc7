"""SigLIP's tower to its end, its last norm included, in front of a projector."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from avl_export.families.base import EncoderGraph
from avl_export.families.encoders.clip import ClipFeatures, clip_graph
from avl_export.families.hf import HfFamily


class SiglipFeatures(nn.Module):
    """A SiglipVisionModel and a projector, whose features are divided by a number.

    Args:
        tower: a SiglipVisionModel.
        projector: [images, patches, C] -> [images, tokens, hidden].
        scale: by which the decoder multiplies all that it reads, features too.
    """

    def __init__(self, tower: nn.Module, projector: nn.Module, scale: float) -> None:
        super().__init__()
        parts: Any = tower
        layers = len(parts.encoder.layers)
        self.tower = ClipFeatures(tower, nn.Identity(), (layers,), keep_first=True)
        self.post_layernorm = parts.post_layernorm
        self.projector = projector
        self.scale = scale

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[images, 3, H, W] -> [images, tokens, hidden]."""
        features = self.projector(self.post_layernorm(self.tower(pixel_values)))
        return cast(torch.Tensor, features / self.scale)


def siglip_graph(family: HfFamily) -> EncoderGraph:
    """The graph of a Gemma's tower and projector; `family` has transformers' names of both."""
    part = family.model.get_submodule
    tower, projector = part("model.vision_tower"), part("model.multi_modal_projector")
    features = SiglipFeatures(tower, projector, family.decoder.token_scale)
    vision = family.config.vision_config
    return clip_graph(family.traits.image.file, features, vision, family.dtype)

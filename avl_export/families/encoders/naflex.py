"""SigLIP 2 in its NaFlex form: patches of pictures of any size, learned positions resized."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import nn

from avl_export.checkpoint.supported import FamilyError
from avl_export.families.base import EncoderGraph
from avl_export.families.encoders.patch_encoder import run_siglip
from avl_export.families.replicate import repeat
from avl_plugins.errors import quoted
from avl_plugins.graph_io import PIXELS, TABLE_SHARES

TOWER = "siglip2_vision_model"


class NaFlexEncoder(nn.Module):
    """SigLIP 2 on pictures of one size whose patches lie cell by cell, and the projector."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        tower, projector = inner.vision_tower, inner.multi_modal_projector
        self.embedding = tower.embeddings.patch_embedding
        self.table = tower.embeddings.position_embedding
        self.layers = tower.encoder.layers
        self.norm = tower.post_layernorm
        self.projector = projector
        self.parts = projector.factor**2

    def forward(self, pixel_values: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """[T, P, D] and [P, table**2], see `PatchedTiles` -> features [T, cells, C]."""
        hidden = self.embedding(pixel_values) + shares @ self.table.weight
        for layer in self.layers:
            hidden = repeat(run_siglip, layer, hidden, self.parts)
        normed = self.norm(hidden)
        cells = normed.reshape(normed.shape[0], -1, self.parts * normed.shape[-1])
        norm, outer = self.projector.layer_norm, self.projector
        cells = cells if norm is None else norm(cells)
        return cast(torch.Tensor, outer.linear_2(outer.act(outer.linear_1(cells))))


def naflex_graph(
    file: str, module: nn.Module, vision: Any, merge: int, dtype: torch.dtype
) -> EncoderGraph:
    """`module`, which reads pictures as cells of `merge` x `merge` patches, as a graph."""
    count, width = 5 * merge**2, vision.num_channels * vision.patch_size**2
    example = {
        PIXELS: torch.empty((2, count, width), dtype=dtype, device="meta"),
        TABLE_SHARES: torch.empty((count, vision.num_patches), dtype=dtype, device="meta"),
    }
    patches = merge**2 * torch.export.Dim("cells")
    dynamic: dict[str, dict[int, Any]] = {
        PIXELS: {0: torch.export.Dim("tiles"), 1: patches},
        TABLE_SHARES: {0: patches},
    }
    return EncoderGraph(file, module, example, dynamic)


def check_naflex(vision: Any, where: str) -> None:
    """Refuse a tower that `NaFlexEncoder` cannot stand for.

    Raises:
        FamilyError: it is another one, or its learned positions are no square.
    """
    if vision.model_type != TOWER:
        raise FamilyError(
            f"{where}: expected a tower of {TOWER}, found {quoted(vision.model_type)}; this "
            "version of avl cannot export it"
        )
    square = math.isqrt(max(0, vision.num_patches)) ** 2 == vision.num_patches > 0
    if not square or vision.num_channels != 3:
        raise FamilyError(
            f"{where}: expected pictures of three channels and a square number of num_patches, "
            f"found {vision.num_channels} and {vision.num_patches}; fix config.json"
        )

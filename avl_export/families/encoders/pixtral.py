"""Pixtral's tower, and the projector that Mistral 3 and LightOnOCR put behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from avl_export.checkpoint.supported import FamilyError
from avl_export.families.base import EncoderGraph
from avl_export.families.encoders.patch_encoder import (
    Turns,
    attend_by_parts,
    embed_patches,
    rms_norm,
)
from avl_export.families.replicate import repeat
from avl_plugins.errors import quoted
from avl_plugins.graph_io import ORDER, PATCH_POSITIONS, PIXELS, WINDOW_MASK
from avl_runtime.vision import Media
from avl_runtime.vision.lines import LinedImage

TOWER = "pixtral"


class PixtralFeatures(nn.Module):
    """The tower on a picture whose patches lie cell by cell, and the projector of merged cells.

    Args:
        tower: a PixtralVisionModel.
        projector: norm, patch_merger, linear_1, act and linear_2.
        layers: of the tower, in front of the state that is read.
    """

    def __init__(self, tower: Any, projector: Any, layers: int) -> None:
        super().__init__()
        self.patch_conv = tower.patch_conv
        self.ln_pre = tower.ln_pre
        self.inv_freq = tower.patch_positional_embedding.inv_freq
        self.layers = nn.ModuleList(tower.transformer.layers[:layers])
        self.projector = projector
        self.merged = projector.patch_merger.spatial_merge_size**2

    def forward(
        self,
        pixel_values: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[1, P, D], [P, 2], [P] and [cells], see `LinedImage` -> features [1, cells, C]."""
        hidden = rms_norm(self.ln_pre, embed_patches(self.patch_conv, pixel_values))
        turns = self._turns(position_ids, hidden)
        for layer in self.layers:
            hidden = repeat(_run_layer, layer, hidden, turns, mask, self.merged)
        normed = rms_norm(self.projector.norm, hidden)
        cells = normed.reshape(1, -1, self.merged, normed.shape[-1]).transpose(2, 3).flatten(2)
        if order is not None:
            cells = cells.index_select(1, order)
        merged = self.projector.patch_merger.merging_layer(cells)
        wide = self.projector.act(self.projector.linear_1(merged))
        return cast(torch.Tensor, self.projector.linear_2(wide))

    def _turns(self, position_ids: torch.Tensor, hidden: torch.Tensor) -> Turns:
        """cos and sin [1, P, head_dim / 2]: rows have half of the frequencies, columns the rest."""
        half = self.inv_freq.shape[0] // 2
        places = position_ids.repeat_interleave(half, dim=1).float()
        angles = (places * self.inv_freq.float())[None]
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def _run_layer(
    layer: Any, hidden: torch.Tensor, turns: Turns, mask: torch.Tensor | None, parts: int
) -> torch.Tensor:
    normed = rms_norm(layer.attention_norm, hidden)
    seen = attend_by_parts(layer.attention, normed, turns, mask, parts)
    hidden = hidden + layer.attention.o_proj(seen)
    return cast(torch.Tensor, hidden + layer.feed_forward(rms_norm(layer.ffn_norm, hidden)))


def pixtral_graph(
    file: str, module: PixtralFeatures, layout: LinedImage, vision: Any, dtype: torch.dtype
) -> EncoderGraph:
    """`module` as a graph to be traced, with the inputs that `layout` prepares."""
    cell, merged = torch.export.Dim("cells"), layout.patches.merge**2
    patch, count = merged * cell, merged * 5
    width = vision.num_channels * layout.patches.size**2
    example = {
        PIXELS: torch.empty((1, count, width), dtype=dtype, device="meta"),
        PATCH_POSITIONS: torch.empty((count, 2), dtype=torch.int64, device="meta"),
    }
    dynamic: dict[str, Mapping[int, Any]] = {PIXELS: {1: patch}, PATCH_POSITIONS: {0: patch}}
    if layout.has_parts:
        example[WINDOW_MASK] = torch.empty(count, dtype=dtype, device="meta")
        example[ORDER] = torch.empty(3, dtype=torch.int64, device="meta")
        dynamic |= {WINDOW_MASK: {0: patch}, ORDER: {0: torch.export.Dim("whole_cells")}}
    return EncoderGraph(file, module, example, dynamic)


def check_pixtral(config: Any, where: str) -> None:
    """Refuse a tower of another kind, or one that cuts pictures in another way.

    Raises:
        FamilyError: `config` configures none that `PixtralFeatures` computes.
    """
    vision = config.vision_config
    if vision.model_type != TOWER:
        raise FamilyError(
            f"{where}: expected a {TOWER} tower, found {quoted(vision.model_type)}; this version "
            "of avl cannot export it"
        )
    if type(vision.patch_size) is not int or vision.num_channels != 3:
        raise FamilyError(
            f"{where}: expected square patches of three channels, found patch_size "
            f"{quoted(vision.patch_size, 40)} and num_channels {vision.num_channels}; this version "
            "of avl cannot export it"
        )


def reference_pictures(media: Sequence[Media], layout: LinedImage) -> dict[str, torch.Tensor]:
    """pixel_values [n, 3, H, W], smaller ones padded, and image_sizes [n, 2] of transformers."""
    pictures = [_picture(one, layout) for one in media]
    sizes = torch.tensor([picture.shape[1:] for picture in pictures])
    height, width = sizes.max(0).values.tolist()
    values = [
        np.pad(one, ((0, 0), (0, height - one.shape[1]), (0, width - one.shape[2])))
        for one in pictures
    ]
    return {"pixel_values": torch.from_numpy(np.stack(values)), "image_sizes": sizes}


def _picture(media: Media, layout: LinedImage) -> NDArray[np.float32]:
    """The pixel values [3, H, W] that were cut into patches."""
    positions, size = media.inputs[PATCH_POSITIONS], layout.patches.size
    held = media.inputs.get(WINDOW_MASK, np.zeros(len(positions))) == 0
    rows, columns = (positions[held].max(0) + 1).tolist()
    grid = np.empty((rows, columns, 3, size, size), np.float32)
    patches = media.inputs[PIXELS].reshape(-1, 3, size, size)
    grid[tuple(positions[held].T)] = patches[held]
    return grid.transpose(2, 0, 3, 1, 4).reshape(3, rows * size, columns * size)

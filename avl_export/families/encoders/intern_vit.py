"""InternViT, and what InternVL and Qianfan-OCR put behind it: pixel shuffle and a projector."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from avl_export.checkpoint.supported import FamilyError
from avl_export.families.replicate import repeat
from avl_plugins.errors import quoted


class TileFeatures(nn.Module):
    """InternViT up to the layer that is read, pixel shuffle, and the projector.

    Args:
        layers: encoder layers before the state that is read.
        normed: whether the tower's last norm follows.
        ratio: side of the shuffled grid of features, as a share of the grid's.
    """

    def __init__(self, inner: Any, layers: int, normed: bool, ratio: float) -> None:
        super().__init__()
        tower = inner.vision_tower
        every = tower.layers if hasattr(tower, "layers") else tower.encoder.layer
        self.embeddings = tower.embeddings
        self.layers = nn.ModuleList(every[:layers])
        self.norm = tower.layernorm if normed else nn.Identity()
        self.projector = inner.multi_modal_projector
        self.ratio = ratio

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[tiles, 3, H, W] -> [tiles, tokens, hidden]."""
        hidden = self.embeddings(pixel_values)
        for layer in self.layers:
            hidden = repeat(_encode, layer, hidden)
        patches = self.norm(hidden)[:, 1:]  # without the class token
        return cast(torch.Tensor, self.projector(self._shuffled(patches)))

    def _shuffled(self, patches: torch.Tensor) -> torch.Tensor:
        """[tiles, side**2, C] -> [tiles, (side * ratio)**2, C / ratio**2]."""
        tiles, count, channels = patches.shape
        side, small = int(count**0.5), int(count**0.5 * self.ratio)
        step = side // small
        split = patches.reshape(tiles, small, step, small, step, channels)
        return split.permute(0, 1, 3, 2, 4, 5).reshape(tiles, small * small, -1)


def _encode(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, layer(hidden))


def check_tower(config: Any, kind: str, where: str) -> None:
    """Refuse an InternViT that `TileFeatures` cannot stand for.

    Raises:
        FamilyError: it is of another kind, or its tiles are none that are shuffled to a square.
    """
    vision = config.vision_config
    if vision.model_type != kind:
        raise FamilyError(
            f"{where}: expected an {kind} tower, found {quoted(vision.model_type)}; "
            "this version of avl cannot export it"
        )
    asked, total = config.vision_feature_layer, vision.num_hidden_layers
    if not isinstance(asked, int) or not -total - 1 <= asked <= total:
        raise FamilyError(
            f"{where}: expected a vision_feature_layer from {-total - 1} to {total}, found "
            f"{str(asked)[:60]}; fix config.json"
        )
    if config.vision_feature_select_strategy != "default":
        raise FamilyError(
            f"{where}: expected vision_feature_select_strategy default, found "
            f"{quoted(config.vision_feature_select_strategy)}; this version of avl cannot export it"
        )
    (height, width), (down, across) = vision.image_size, vision.patch_size
    step = round(1 / config.downsample_ratio)
    if (height, down) != (width, across) or step * config.downsample_ratio != 1:
        raise FamilyError(
            f"{where}: expected square tiles and patches and a downsample_ratio of 1 by a whole "
            f"number, found tiles of {height} x {width}, patches of {down} x {across} and "
            f"{config.downsample_ratio}; this version of avl cannot export it"
        )
    if height % (down * step):
        raise FamilyError(
            f"{where}: expected an image_size that is a multiple of {step} patches of {down} "
            f"pixels, found {height}; fix config.json"
        )

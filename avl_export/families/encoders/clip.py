"""What families with a CLIP or SigLIP tower share: which of its states they read, and its graph.

SigLIP's tower is CLIP's without a class token and without a norm in front of the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from avl_export.checkpoint.supported import FamilyError
from avl_export.families.base import EncoderGraph
from avl_export.families.replicate import repeat
from avl_plugins.errors import quoted
from avl_plugins.graph_io import FEATURES, PIXELS

CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
STRATEGIES = {CLIP: "default", SIGLIP: "full"}  # what leaves one feature for each patch


class ClipFeatures(nn.Module):
    """A CLIP or SigLIP tower up to the layers that a LLaVA reads, and the projector.

    Args:
        tower: a CLIPVisionModel or SiglipVisionModel.
        projector: [images, tokens, C * states] -> [images, tokens, hidden].
        layers: for each state that is read, how many encoder layers come before it.
        keep_first: whether the first token, which is CLIP's class token and SigLIP's first patch,
            comes along: vision_feature_select_strategy is "full".
    """

    def __init__(
        self, tower: nn.Module, projector: nn.Module, layers: tuple[int, ...], keep_first: bool
    ) -> None:
        super().__init__()
        parts: Any = tower
        self.embeddings = parts.embeddings
        self.pre_norm = getattr(parts, "pre_layrnorm", nn.Identity())
        self.layers = nn.ModuleList(parts.encoder.layers[: max(layers)])
        self.projector = projector
        self.read = layers
        self.first = 0 if keep_first else 1

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[images, 3, H, W] -> [images, tokens, hidden]."""
        return self.features(self.states(pixel_values))

    def states(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """States [images, 1 + patches, C] before each layer, and behind the last one that runs."""
        hidden = self.pre_norm(self.embeddings(pixel_values))
        states = [hidden]
        for layer in self.layers:
            hidden = repeat(_encode, layer, hidden)
            states.append(hidden)
        return states

    def features(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """[images, tokens, hidden] of `states`."""
        picked = [states[index][:, self.first :] for index in self.read]
        features = picked[0] if len(picked) == 1 else torch.cat(picked, dim=-1)
        return cast(torch.Tensor, self.projector(features))


def _encode(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, layer(hidden, None))


def clip_graph(
    file: str,
    module: nn.Module,
    vision: Any,
    dtype: torch.dtype,
    outputs: tuple[str, ...] = (FEATURES,),
    attending: nn.Module | None = None,
) -> EncoderGraph:
    """`module`, which takes pixel_values [images, 3, H, W] alone, as a graph to be traced.

    `attending` is as in `EncoderGraph`.
    """
    return EncoderGraph(
        file,
        module,
        {PIXELS: clip_pixels(vision, dtype)},
        {PIXELS: {0: torch.export.Dim("images")}},
        outputs,
        attending,
    )


def clip_pixels(vision: Any, dtype: torch.dtype) -> torch.Tensor:
    """An example of pixel_values [2, 3, H, W] on the meta device."""
    shape = (2, vision.num_channels, vision.image_size, vision.image_size)
    return torch.empty(shape, dtype=dtype, device="meta")


def check_clip(vision: Any, where: str, kinds: Sequence[str] = (CLIP,)) -> None:
    """Refuse a tower of another kind.

    Raises:
        FamilyError: `vision` configures none of `kinds`.
    """
    if vision.model_type not in kinds:
        raise FamilyError(
            f"{where}: expected a {' or '.join(kinds)} tower, found {quoted(vision.model_type)}; "
            "this version of avl cannot export it"
        )


def check_grid(config: Any, where: str) -> None:
    """Refuse a tower of another kind than CLIP and SigLIP, or one with more or less than a grid.

    Raises:
        FamilyError: features are not one for each patch.
    """
    check_clip(config.vision_config, where, tuple(STRATEGIES))
    tower, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
    if STRATEGIES[tower] == strategy:
        return
    known = " or ".join(
        f"a {kind} tower with vision_feature_select_strategy {wanted!r}"
        for kind, wanted in STRATEGIES.items()
    )
    why = (
        "whose class token has no place in a grid of tiles"
        if tower == CLIP
        else "which takes a feature from each tile"
    )
    raise FamilyError(
        f"{where}: expected {known}, found {tower} with {quoted(strategy)}, {why}; "
        "this version of avl cannot export it"
    )


def layers_before(asked: int, total: int) -> int:
    """How many of `total` layers come before a state, which negative numbers count from the end."""
    return asked + total + 1 if asked < 0 else asked


def feature_layers(config: Any, where: str) -> tuple[int, ...]:
    """How many encoder layers come before each state read: -2 of 24 layers is 23.

    Raises:
        FamilyError: vision_feature_layer names a layer that the tower does not have.
    """
    total = config.vision_config.num_hidden_layers
    asked = config.vision_feature_layer
    asked = [asked] if isinstance(asked, int) else list(asked)
    counts = tuple(layers_before(n, total) for n in asked)
    if not counts or not all(0 <= n <= total for n in counts):
        raise FamilyError(
            f"{where}: expected vision_feature_layer within {-total - 1} to {total}, "
            f"found {asked}; fix config.json"
        )
    return counts

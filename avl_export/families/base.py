"""The seam between model families and everything else in the exporter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from avl_plugins.errors import AvlError
from avl_runtime.package import Dims, ImageProcessing, Tokens

if TYPE_CHECKING:
    import torch
    from torch import nn


class FamilyError(AvlError):
    """A checkpoint's architecture, or a variant of it, is not supported."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What the manifest says about a model beyond its graphs.

    `image_shape` is (channels, height, width) of `pixel_values`.
    """

    dims: Dims
    tokens: Tokens
    image_processing: ImageProcessing
    chat_template: str | None
    tokens_per_image: int
    grid: tuple[int, int]
    image_shape: tuple[int, int, int]


class Family(Protocol):
    """One checkpoint seen through its family's eyes; its modules live on the meta device."""

    @property
    def name(self) -> str:
        """The family's name: the config's model_type."""
        ...

    @property
    def traits(self) -> Traits:
        """Sizes, tokens and preprocessing."""
        ...

    @property
    def model(self) -> nn.Module:
        """The whole transformers model, in the compute dtype, without weights."""
        ...

    @property
    def text_model(self) -> nn.Module:
        """The decoder: embed_tokens, layers, norm, rotary_emb."""
        ...

    @property
    def lm_head(self) -> nn.Module:
        """hidden [..., C] -> logits [..., vocab]."""
        ...

    def vision_module(self) -> nn.Module:
        """pixel_values [images, 3, H, W] -> image_features [images, tokens, C].

        Holds only the submodules it needs.
        """
        ...

    def constants(self) -> dict[str, torch.Tensor]:
        """Values of the buffers that no checkpoint stores, by name in `model`."""
        ...

    def reference(self) -> nn.Module:
        """The model with its weights, fp32 on the CPU, eager attention: reads the checkpoint."""
        ...

    def layers_of(self, model: nn.Module) -> Sequence[nn.Module]:
        """The decoder layers of `reference()`."""
        ...

    def projector_of(self, model: nn.Module) -> nn.Module:
        """The module of `reference()` whose output are the image features."""
        ...

"""Mistral 3 and Ministral 3: Pixtral's tower, merged cells, a break behind each line of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.encoders.pixtral import check_pixtral
from avl_export.families.hf import meta_model
from avl_export.families.pixtral import PixtralFamily, pixtral_patches, pixtral_traits
from avl_export.families.processors.line_processing import broken_lines
from avl_plugins.errors import quoted


@dataclass(frozen=True, slots=True)
class Mistral3(PixtralFamily):
    """A Mistral 3 checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Mistral3ForConditionalGeneration
    tower: ClassVar[str] = "model.vision_tower"
    projector: ClassVar[str] = "model.multi_modal_projector"


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Mistral3:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, Mistral3Config, Mistral3ForConditionalGeneration, dtype, _check_parts
    )
    layout = broken_lines(checkpoint, pixtral_patches(config))
    traits = pixtral_traits(checkpoint, config, layout)
    layers = _layers(config)
    return Mistral3("mistral3", checkpoint.folder, traits, model, decoder, layout, layers)


def _layers(config: Any) -> int:
    """Layers of the tower in front of the state that is read."""
    asked = config.vision_feature_layer
    (asked,) = [asked] if isinstance(asked, int) else asked
    return asked + config.vision_config.num_hidden_layers + 1 if asked < 0 else asked


def _check_parts(config: Any, where: str) -> None:
    check_pixtral(config, where)
    asked, total = config.vision_feature_layer, config.vision_config.num_hidden_layers
    found = [asked] if isinstance(asked, int) else list(asked)
    if len(found) != 1 or not -total <= found[0] <= total:
        raise FamilyError(
            f"{where}: expected one vision_feature_layer from {-total} to {total}, found "
            f"{quoted(asked, 60)}; fix config.json"
        )

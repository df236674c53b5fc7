"""Mistral 3 and Ministral 3: Pixtral's tower, merged cells, a break behind each line of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.pixtral import (
    PixtralFeatures,
    check_pixtral,
    pixtral_graph,
    reference_pictures,
)
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.line_processing import broken_lines
from avl_export.families.processors.preprocessing import special_tokens, token_text
from avl_plugins.errors import quoted
from avl_runtime.package.manifest import ImageEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.lines import LinedImage
from avl_runtime.vision.patches import Patches


@dataclass(frozen=True, slots=True)
class Mistral3(HfFamily):
    """A Mistral 3 checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Mistral3ForConditionalGeneration
    layout: LinedImage

    def encoders(self) -> Sequence[EncoderGraph]:
        part, vision = self.model.get_submodule, self.config.vision_config
        layers = _layers(self.config)
        features = PixtralFeatures(
            part("model.vision_tower"), part("model.multi_modal_projector"), layers
        )
        return [pixtral_graph("vision.onnx", features, self.layout, vision, self.dtype)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        if prompt.media:
            inputs |= reference_pictures(prompt.media, self.layout)
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Mistral3:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, Mistral3Config, Mistral3ForConditionalGeneration, dtype, _check_parts
    )
    patches = Patches(
        size=config.vision_config.patch_size,
        temporal=1,
        merge=config.spatial_merge_size,
        window=None,
        table=None,
    )
    layout = broken_lines(checkpoint, patches)
    token = config.image_token_id
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder("vision.onnx", token_text(checkpoint, token), token, layout),
    )
    return Mistral3("mistral3", checkpoint.folder, traits, model, decoder, layout)


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

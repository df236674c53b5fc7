"""Granite 4 Vision: LLaVA-NeXT's tiles, Q-Formers in windows, features added before many layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Granite4VisionConfig, Granite4VisionForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.clip import (
    ClipFeatures,
    check_grid,
    clip_graph,
    layers_before,
)
from avl_export.families.encoders.stacked import StackedFeatures
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.preprocessing import special_tokens, token_text
from avl_export.families.processors.tiles import (
    reference_tiles,
    resolutions,
    tile_processing,
)
from avl_plugins.errors import quoted
from avl_plugins.graph_io import DEEPSTACK_FEATURES, FEATURES
from avl_runtime.package.manifest import ImageEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.anyres import AnyresImage

GRAPH = "vision.onnx"


@dataclass(frozen=True, slots=True)
class Granite4Vision(HfFamily):
    """A Granite 4 Vision checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Granite4VisionForConditionalGeneration

    def encoders(self) -> Sequence[EncoderGraph]:
        config, part = self.config, self.model.get_submodule
        stacked = _stacked(config)
        layers = sorted({_state(config, state) for _, state in stacked.values()})
        keep_first = config.vision_feature_select_strategy == "full"
        tower = ClipFeatures(part("model.vision_tower"), nn.Identity(), tuple(layers), keep_first)
        module = StackedFeatures(
            tower,
            [part(f"model.{name}") for name, _ in stacked.values()],
            [layers.index(_state(config, state)) for _, state in stacked.values()],
            self.model.get_parameter("model.image_newline"),
            0 in stacked,
            self.decoder.embedding_scale,
        )
        outputs = (FEATURES, DEEPSTACK_FEATURES) if self.traits.deepstack else (FEATURES,)
        return [clip_graph(GRAPH, module, config.vision_config, self.dtype, outputs)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        return reference_tiles(prompt)


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Granite4Vision:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, Granite4VisionConfig, Granite4VisionForConditionalGeneration, dtype, _check
    )
    vision, token = config.vision_config, config.image_token_id
    layout = AnyresImage(
        kind="anyres",
        processing=tile_processing(checkpoint, vision.image_size),
        resolutions=resolutions(checkpoint, config),
        tile=vision.image_size,
        side=int(vision.image_size // vision.patch_size * Fraction(config.downsample_rate)),
    )
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder(GRAPH, token_text(checkpoint, token), token, layout),
        # What is added before a layer is added to what the one before it puts out.
        deepstack=tuple(layer - 1 for layer in _stacked(config) if layer > 0),
    )
    return Granite4Vision("granite4_vision", checkpoint.folder, traits, model, decoder)


def _stacked(config: Any) -> Mapping[int, tuple[str, int]]:
    """Of each decoder layer that features are added before: their projector, and its state."""
    found = {
        layer: (f"layerwise_projectors.{number}", state)
        for number, (state, layer) in enumerate(config.deepstack_layer_map or ())
    }
    for number, layer in enumerate(config.spatial_target_layers):  # in place of another, if any
        found[layer] = (f"spatial_projectors.{number}", config.spatial_vision_layer)
    return dict(sorted(found.items()))


def _state(config: Any, asked: int) -> int:
    """How many layers of the tower come before one of its states."""
    return layers_before(asked, config.vision_config.num_hidden_layers)


def _check(config: Any, where: str) -> None:
    check_grid(config, where)
    vision, total = config.vision_config, config.vision_config.num_hidden_layers
    side = vision.image_size // vision.patch_size
    rate = str(config.downsample_rate)
    queries, _, window = rate.partition("/")
    known = queries.isdigit() and window.isdigit() and 0 < int(queries) <= int(window)
    if not known or side % int(window):
        raise FamilyError(
            f"{where}: expected a downsample_rate as 4/8, of windows that divide {side} patches, "
            f"found {quoted(config.downsample_rate, 40)}; fix config.json"
        )
    if config.spatial_target_layers and 2 * int(queries) != int(window):
        raise FamilyError(
            f"{where}: expected a downsample_rate of one half where spatial_target_layers has "
            f"layers, as transformers does, found {quoted(rate, 40)}; fix config.json"
        )
    if len(config.spatial_target_layers) > 4:  # each takes one of every four patches
        raise FamilyError(
            f"{where}: expected at most 4 spatial_target_layers, found "
            f"{quoted(config.spatial_target_layers, 60)}; fix config.json"
        )
    layers = [layer for _, layer in config.deepstack_layer_map or ()]
    states = [state for state, _ in config.deepstack_layer_map or ()]
    layers += config.spatial_target_layers
    states.append(config.spatial_vision_layer)
    last = config.text_config.num_hidden_layers
    if not layers or not all(0 <= layer < last for layer in layers):
        raise FamilyError(
            f"{where}: expected decoder layers below {last} in deepstack_layer_map and "
            f"spatial_target_layers, found {quoted(layers, 60)}; fix config.json"
        )
    if not all(0 <= _state(config, state) <= total for state in states):
        raise FamilyError(
            f"{where}: expected vision layers from {-total - 1} to {total} in deepstack_layer_map "
            f"and spatial_vision_layer, found {quoted(states, 60)}; fix config.json"
        )

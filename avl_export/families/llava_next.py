"""LLaVA-NeXT (LLaVA 1.6): pictures of any resolution as an overview and tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.clip import (
    ClipFeatures,
    check_grid,
    clip_graph,
    feature_layers,
)
from avl_export.families.encoders.clip_attention import tiles_attended
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.preprocessing import special_tokens, token_text
from avl_export.families.processors.tiles import (
    TilesAndBreak,
    reference_tiles,
    resolutions,
    tile_processing,
)
from avl_runtime.package.manifest import ImageEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.anyres import AnyresImage


@dataclass(frozen=True, slots=True)
class LlavaNext(HfFamily):
    """A LLaVA-NeXT checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = LlavaNextForConditionalGeneration
    feature_layers: tuple[int, ...]

    def encoders(self) -> Sequence[EncoderGraph]:
        part = self.model.get_submodule
        tower = ClipFeatures(
            part("model.vision_tower"),
            part("model.multi_modal_projector"),
            self.feature_layers,
            keep_first=self.config.vision_feature_select_strategy == "full",
        )
        line_break = self.model.get_parameter("model.image_newline")
        module, vision = TilesAndBreak(tower, line_break), self.config.vision_config
        attending = tiles_attended(tower, vision, line_break)
        file = self.traits.image.file
        return [clip_graph(file, module, vision, self.dtype, attending=attending)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        return reference_tiles(prompt)


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> LlavaNext:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, LlavaNextConfig, LlavaNextForConditionalGeneration, dtype, check_parts
    )
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=image_encoder(checkpoint, config),
    )
    layers = feature_layers(config, str(checkpoint.folder / "config.json"))
    return LlavaNext("llava_next", checkpoint.folder, traits, model, decoder, layers)


def image_encoder(checkpoint: Checkpoint, config: Any) -> ImageEncoder:
    """What the manifest says of pictures.

    Raises:
        FamilyError: model and image processor do not fit each other.
    """
    vision = config.vision_config
    return ImageEncoder(
        file="vision.onnx",
        placeholder=token_text(checkpoint, config.image_token_id),
        token=config.image_token_id,
        layout=AnyresImage(
            kind="anyres",
            processing=tile_processing(checkpoint, vision.image_size),
            resolutions=resolutions(checkpoint, config),
            tile=vision.image_size,
            side=vision.image_size // vision.patch_size,
        ),
    )


def check_parts(config: Any, where: str) -> None:
    """Refuse towers whose features are not one for each patch, and decoders that do not fit.

    Raises:
        FamilyError: the configuration has one.
    """
    check_grid(config, where)

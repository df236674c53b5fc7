"""Idefics3 and the first SmolVLM: SigLIP over tiles, pixel shuffle, one linear; no videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.bucketed import (
    BucketedFeatures,
    bucketed_constants,
    give_places,
)
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.preprocessing import special_tokens, token_text
from avl_export.families.processors.split import check_length, split_image
from avl_plugins.errors import quoted
from avl_plugins.graph_io import PIXELS
from avl_runtime.package.manifest import ImageEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.split import TileText

GRAPH = "vision.onnx"
TEXT = TileText("<fake_token_around_image>", "<global-img>")


@dataclass(frozen=True, slots=True)
class Idefics3(HfFamily):
    """An Idefics3 checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Idefics3ForConditionalGeneration

    def encoders(self) -> Sequence[EncoderGraph]:
        vision = self.config.vision_config
        features = BucketedFeatures(self.model.get_submodule("model"))
        shape = (2, vision.num_channels, vision.image_size, vision.image_size)
        pixels = torch.empty(shape, dtype=self.dtype, device="meta")
        dynamic = {PIXELS: {0: torch.export.Dim("tiles")}}
        return [EncoderGraph(GRAPH, features, {PIXELS: pixels}, dynamic)]

    def constants(self) -> dict[str, torch.Tensor]:
        return {**HfFamily.constants(self), **bucketed_constants(patches_along(self.config))}

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        if prompt.media:
            tiles = np.concatenate([media.inputs[PIXELS] for media in prompt.media])
            inputs["pixel_values"] = torch.from_numpy(tiles)[None]
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Idefics3:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        checkpoint, Idefics3Config, Idefics3ForConditionalGeneration, dtype, check_parts
    )
    give_places(model, patches_along(config))
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=image_encoder(checkpoint, config, TEXT),
    )
    return Idefics3("idefics3", checkpoint.folder, traits, model, decoder)


def image_encoder(checkpoint: Checkpoint, config: Any, text: TileText) -> ImageEncoder:
    """What the manifest says of pictures.

    Raises:
        FamilyError: model and image processor do not fit each other.
    """
    side = tokens_along(config)
    check_length(checkpoint, side * side)
    return ImageEncoder(
        file=GRAPH,
        placeholder=token_text(checkpoint, config.image_token_id),
        token=config.image_token_id,
        layout=split_image(checkpoint, config.vision_config.image_size, (side, side), text),
    )


def patches_along(config: Any) -> int:
    """Patches along a side of a tile; pixels that make no whole one are left out."""
    vision = config.vision_config
    return int(vision.image_size // vision.patch_size)


def tokens_along(config: Any) -> int:
    """Tokens along a side of a tile."""
    return patches_along(config) // int(config.scale_factor)


def check_parts(config: Any, where: str) -> None:
    """Refuse towers of other sizes than the connector joins.

    Raises:
        FamilyError: the configuration has one.
    """
    vision, factor = config.vision_config, config.scale_factor
    sizes = (vision.image_size, vision.patch_size, factor)
    whole = all(type(size) is int and size > 0 for size in sizes)
    if not whole or patches_along(config) % factor or patches_along(config) < factor:
        raise FamilyError(
            f"{where}: expected square tiles whose patches along a side are a multiple of "
            f"scale_factor, found image_size {quoted(sizes[0], 20)}, patch_size "
            f"{quoted(sizes[1], 20)} and scale_factor {quoted(factor, 20)}; fix config.json"
        )

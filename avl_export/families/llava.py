"""LLaVA 1.5 and its relatives: CLIP or SigLIP, a two-layer projector, a Llama-like decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.clip import (
    CLIP,
    SIGLIP,
    ClipFeatures,
    check_clip,
    clip_graph,
    feature_layers,
)
from avl_export.families.encoders.clip_attention import attended
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.preprocessing import (
    check_side,
    image_processing,
    image_processor,
    special_tokens,
    token_text,
)
from avl_plugins.graph_io import PIXELS
from avl_runtime.package.manifest import ImageEncoder
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.fixed import FixedImage


@dataclass(frozen=True, slots=True)
class Llava(HfFamily):
    """A LLaVA checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = LlavaForConditionalGeneration
    feature_layers: tuple[int, ...]
    keep_first: bool

    def encoders(self) -> Sequence[EncoderGraph]:
        part = self.model.get_submodule
        features = ClipFeatures(
            part("model.vision_tower"),
            part("model.multi_modal_projector"),
            self.feature_layers,
            self.keep_first,
        )
        vision = self.config.vision_config
        file, attending = self.traits.image.file, attended(features, vision)
        return [clip_graph(file, features, vision, self.dtype, attending=attending)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        if prompt.media:
            pixels = np.concatenate([media.inputs[PIXELS] for media in prompt.media])
            inputs["pixel_values"] = torch.from_numpy(pixels)
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Llava:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    return load_as(Llava, LlavaConfig, checkpoint, dtype, _check_parts)


def load_as(
    family: type[Llava],
    config_class: Any,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    check: Callable[[Any, str], None],
) -> Llava:
    """Build the model of `checkpoint`, of a family like LLaVA, on the meta device.

    Args:
        check: as `meta_model` takes it.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(checkpoint, config_class, family.model_class, dtype, check)
    vision = config.vision_config
    layers = feature_layers(config, str(checkpoint.folder / "config.json"))
    side = vision.image_size // vision.patch_size
    # ViP-LLaVA has no choice: it leaves the class token out.
    keep_first = getattr(config, "vision_feature_select_strategy", None) == "full"
    # CLIP puts a class token in front of its patches; SigLIP does not, and may lose a patch.
    tokens = side * side + int(vision.model_type == CLIP) - int(not keep_first)
    processing = image_processing(checkpoint, vision.image_size)
    check_side(processing, vision.image_size, image_processor(checkpoint)[1])
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder(
            file="vision.onnx",
            placeholder=token_text(checkpoint, config.image_token_id),
            token=config.image_token_id,
            layout=FixedImage(
                kind="fixed",
                processing=processing,
                grid=(side, side),
                tokens=tokens,
            ),
        ),
    )
    return family(config.model_type, checkpoint.folder, traits, model, decoder, layers, keep_first)


def _check_parts(config: Any, where: str) -> None:
    check_clip(config.vision_config, where, (CLIP, SIGLIP))

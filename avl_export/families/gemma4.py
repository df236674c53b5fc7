"""Gemma 4 E2B and E4B: pictures of any size, pooled; layers that share rows; inputs of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import Gemma4Config, Gemma4ForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.gemma4 import Gemma4Features, reference_patches
from avl_export.families.encoders.patch_encoder import frames_graph
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.patch_processing import filled_image
from avl_export.families.processors.preprocessing import special_tokens, token_text
from avl_plugins.errors import quoted
from avl_plugins.graph_io import SLIDING
from avl_runtime.package.manifest import ImageEncoder, Reach
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.patches import Patches

TOWER = "gemma4_vision"


@dataclass(frozen=True, slots=True)
class Gemma4(HfFamily):
    """A Gemma 4 checkpoint; see `families.base.Family`. Its tower for sound is left aside."""

    model_class: ClassVar[Any] = Gemma4ForConditionalGeneration
    patches: Patches

    def encoders(self) -> Sequence[EncoderGraph]:
        part = self.model.get_submodule
        features = Gemma4Features(
            part("model.vision_tower"), part("model.embed_vision"), self.decoder.token_scale
        )
        return [frames_graph(self.traits.image.file, features, self.patches, 3, self.dtype)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        if prompt.media:
            inputs |= reference_patches(prompt.media, self.patches)
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Gemma4:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        *(checkpoint, Gemma4Config, Gemma4ForConditionalGeneration, dtype, _check_parts),
        slides=True,
    )
    vision, text = config.vision_config, config.text_config
    patches = Patches(vision.patch_size, 1, vision.pooling_kernel_size, None, None)
    begin, end = (token_text(checkpoint, one) for one in (config.boi_token_id, config.eoi_token_id))
    layout = filled_image(checkpoint, patches, begin, end)
    longest = layout.max_pixels // patches.cell**2 * patches.merge
    if longest > vision.position_embedding_size:
        raise FamilyError(
            f"{checkpoint.folder / 'config.json'}: expected positions for the {longest} patches of "
            f"the longest picture, found position_embedding_size "
            f"{vision.position_embedding_size}; fetch it and the image processor's settings again"
        )
    window = text.sliding_window if SLIDING.name in decoder.kinds else None
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder(
            file="vision.onnx",
            placeholder=token_text(checkpoint, config.image_token_id),
            token=config.image_token_id,
            layout=layout,
        ),
        reach=Reach(window),
        beside_visual=text.pad_token_id,
    )
    return Gemma4("gemma4", checkpoint.folder, traits, model, decoder, patches)


def _check_parts(config: Any, where: str) -> None:
    vision = config.vision_config
    if vision.model_type != TOWER:
        raise FamilyError(
            f"{where}: expected a {TOWER} tower, found {quoted(vision.model_type)}; this version "
            "of avl cannot export it"
        )
    if vision.num_key_value_heads != vision.num_attention_heads:
        raise FamilyError(
            f"{where}: expected a tower with as many heads of keys as of queries, found "
            f"{quoted(vision.num_key_value_heads)} for {vision.num_attention_heads}; this version "
            "of avl cannot export it"
        )

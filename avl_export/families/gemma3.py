"""Gemma 3: SigLIP over squares of one size, pooled; a picture's tokens see one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.clip import SIGLIP, check_clip
from avl_export.families.encoders.siglip import siglip_graph
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.preprocessing import (
    BILINEAR,
    check_side,
    image_processor,
    processing_of,
    siglip_defaults,
    special_tokens,
    token_text,
)
from avl_plugins.errors import quoted
from avl_plugins.graph_io import PIXELS, SLIDING
from avl_runtime.package.manifest import ImageEncoder, Reach
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.fixed import FixedImage


@dataclass(frozen=True, slots=True)
class Gemma3(HfFamily):
    """A Gemma 3 checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Gemma3ForConditionalGeneration

    def encoders(self) -> Sequence[EncoderGraph]:
        return [siglip_graph(self)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        # Without token_type_ids transformers lets a picture's tokens see those before them alone.
        inputs = {
            "input_ids": torch.from_numpy(prompt.input_ids)[None],
            "token_type_ids": torch.from_numpy(prompt.image_mask.astype(np.int64))[None],
        }
        if prompt.media:
            pixels = np.concatenate([media.inputs[PIXELS] for media in prompt.media])
            inputs["pixel_values"] = torch.from_numpy(pixels)
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Gemma3:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        *(checkpoint, Gemma3Config, Gemma3ForConditionalGeneration, dtype, _check_parts),
        slides=True,
    )
    window = config.text_config.sliding_window if SLIDING.name in decoder.kinds else None
    side = math.isqrt(config.mm_tokens_per_image)
    begin, end = (token_text(checkpoint, config.boi_token_id), config.eoi_token_id)
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=chat_template(checkpoint),
        image=ImageEncoder(
            file="vision.onnx",
            placeholder=begin,
            token=config.image_token_id,
            layout=FixedImage(
                kind="fixed",
                processing=_processing(checkpoint, config.vision_config.image_size),
                grid=(side, side),
                tokens=side * side,
                before=f"\n\n{begin}",
                after=f"{token_text(checkpoint, end)}\n\n",
            ),
        ),
        reach=Reach(window, "images"),
    )
    return Gemma3("gemma3", checkpoint.folder, traits, model, decoder)


def _processing(checkpoint: Checkpoint, side: int) -> Any:
    """How pictures become pixels.

    Raises:
        FamilyError: settings ask for crops of long pictures, or for steps that there are not.
    """
    raw, place = image_processor(checkpoint)
    if raw.get("do_pan_and_scan"):
        raise FamilyError(
            f"{place}: expected pictures that are read as a whole, found do_pan_and_scan of "
            f"{quoted(raw['do_pan_and_scan'], 20)}; set it to false"
        )
    processing = processing_of(raw, place, siglip_defaults(side) | {"resample": BILINEAR})
    check_side(processing, side, place)
    return processing


def _check_parts(config: Any, where: str) -> None:
    vision, tokens = config.vision_config, config.mm_tokens_per_image
    check_clip(vision, where, (SIGLIP,))
    patches, side = vision.image_size // vision.patch_size, math.isqrt(tokens or 0)
    if not side or side * side != tokens or patches % side:
        raise FamilyError(
            f"{where}: expected mm_tokens_per_image to be a square whose side divides {patches} "
            f"patches, found {quoted(tokens, 20)}; fix the file"
        )

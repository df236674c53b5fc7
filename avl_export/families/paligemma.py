"""PaliGemma: SigLIP over squares of one size; all tokens of a prompt see one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import chat_template
from avl_export.families.base import EncoderGraph, Traits
from avl_export.families.encoders.clip import SIGLIP, check_clip
from avl_export.families.encoders.siglip import siglip_graph
from avl_export.families.hf import HfFamily, meta_model
from avl_export.families.processors.preprocessing import (
    check_side,
    image_processing,
    image_processor,
    special_tokens,
    token_text,
)
from avl_plugins.errors import quoted
from avl_plugins.graph_io import PIXELS
from avl_runtime.package.manifest import ImageEncoder, Reach
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision.fixed import FixedImage

# What PaliGemmaProcessor writes: BOS behind the last picture, and a line break behind the text.
# There is no other template, as the model knows no turns.
TEMPLATE = (
    "{%- if messages | length > 1 or messages[0]['role'] != 'user' -%}{{ raise_exception('this "
    "model answers one question without a system prompt; ask each one anew') }}{%- endif -%}"
    "{%- set said = namespace(text='') -%}{%- set content = messages[0]['content'] -%}"
    "{%- if content is string -%}{%- set said.text = content -%}{%- else -%}"
    "{%- for item in content -%}{%- set said.text = said.text + ('<image>' "
    "if item['type'] == 'image' else item['text']) -%}{%- endfor -%}{%- endif -%}"
    "{%- set shown = said.text.rfind('<image>') -%}"
    "{%- set shown = shown + '<image>' | length if shown >= 0 else 0 -%}"
    "{{ said.text[:shown] + bos_token + said.text[shown:] + '\\n' }}"
)


@dataclass(frozen=True, slots=True)
class PaliGemma(HfFamily):
    """A PaliGemma checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = PaliGemmaForConditionalGeneration

    def encoders(self) -> Sequence[EncoderGraph]:
        return [siglip_graph(self)]

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        count = len(prompt.input_ids)
        said = count if prompt.ends is None else int(prompt.ends[0])
        inputs = {
            "input_ids": torch.from_numpy(prompt.input_ids)[None],
            # Those of a prompt see one another, those behind it all before them.
            "token_type_ids": (torch.arange(count) >= said).long()[None],
            # transformers counts from 1, which turns queries and keys alike.
            "position_ids": torch.arange(count)[None],
        }
        if prompt.media:
            pixels = np.concatenate([media.inputs[PIXELS] for media in prompt.media])
            inputs["pixel_values"] = torch.from_numpy(pixels)
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> PaliGemma:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    config, model, decoder = meta_model(
        *(checkpoint, PaliGemmaConfig, PaliGemmaForConditionalGeneration, dtype, _check_parts),
        both_ways=True,
    )
    if chat_template(checkpoint):
        raise FamilyError(
            f"{checkpoint.folder}: expected no chat template, as PaliGemmaProcessor writes a "
            "prompt by itself, found one; take it out to ask without it"
        )
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    processing = image_processing(checkpoint, vision.image_size)
    raw, place = image_processor(checkpoint)
    check_side(processing, vision.image_size, place)
    if raw.get("image_seq_length", side * side) != side * side:
        raise FamilyError(
            f"{place}: expected image_seq_length of {side * side}, the patches of a picture, found "
            f"{quoted(raw['image_seq_length'], 20)}; fix the file"
        )
    traits = Traits(
        tokens=special_tokens(checkpoint, config),
        chat_template=TEMPLATE,
        image=ImageEncoder(
            file="vision.onnx",
            placeholder=token_text(checkpoint, config.image_token_id),
            token=config.image_token_id,
            layout=FixedImage("fixed", processing, (side, side), side * side),
        ),
        reach=Reach(blocks="prompt"),
        bare=True,  # the template has BOS, in its place
    )
    return PaliGemma("paligemma", checkpoint.folder, traits, model, decoder)


def _check_parts(config: Any, where: str) -> None:
    check_clip(config.vision_config, where, (SIGLIP,))

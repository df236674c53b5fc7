"""GLM-4.1V and GLM-4.6V-Flash: pictures and videos, learned positions stretched cubically."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Glm4vConfig, Glm4vForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.encoders.glm import GlmEncoder
from avl_export.families.hf import meta_model
from avl_export.families.processors.patch_processing import grown_image, stamped_video
from avl_export.families.qwen import FramesFamily, check_cut, qwen_traits, vision_patches
from avl_plugins.errors import quoted
from avl_runtime.prompts.processor import Prompt


@dataclass(frozen=True, slots=True)
class Glm4v(FramesFamily):
    """A GLM-4V checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Glm4vForConditionalGeneration
    encoder_class: ClassVar[type[nn.Module]] = GlmEncoder

    def reference_inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        # As both are the same tokens, transformers refuses pictures and videos in one prompt; to it
        # a picture is as a video of one group of frames.
        mixed = len({part.kind for part in prompt.media}) > 1
        if mixed:
            prompt = replace(prompt, media=tuple(replace(m, kind="video") for m in prompt.media))
        # Zero-argument super() knows no class here: slots make the decorator build a new one.
        inputs = FramesFamily.reference_inputs(self, prompt)
        ids, config = inputs["input_ids"], self.config
        starts, ends = (
            (ids == token).cumsum(1)
            for token in (config.video_start_token_id, config.video_end_token_id)
        )
        types = inputs["mm_token_type_ids"]  # 2 for those of videos
        types[(ids == config.image_token_id) & (mixed | (starts > ends))] = 2
        return inputs


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Glm4v:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    return load_as(Glm4v, Glm4vConfig, checkpoint, dtype)


def load_as(
    family: type[Glm4v], config_class: Any, checkpoint: Checkpoint, dtype: torch.dtype
) -> Glm4v:
    """As `load`, of a configuration whose model is the same under another name.

    Raises:
        FamilyError: as `load`.
    """
    config, model, decoder = meta_model(
        checkpoint, config_class, family.model_class, dtype, _check_parts
    )
    vision = config.vision_config
    table = vision.image_size // vision.patch_size
    patches = vision_patches(vision, table, stretch="cubic")
    image = grown_image(checkpoint, patches)
    video = stamped_video(checkpoint, patches, config)
    traits = qwen_traits(checkpoint, config, image, video, one_token=True)
    return family(config_class.model_type, checkpoint.folder, traits, model, decoder, patches)


def _check_parts(config: Any, where: str) -> None:
    vision = config.vision_config
    check_cut(vision, where)
    if type(vision.image_size) is not int or vision.image_size < vision.patch_size:
        raise FamilyError(
            f"{where}: expected an image_size of one number, at least a patch of "
            f"{vision.patch_size} pixels, found {quoted(vision.image_size, 40)}; fix config.json"
        )

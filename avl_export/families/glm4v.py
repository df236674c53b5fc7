"""GLM-4.1V and GLM-4.6V-Flash: pictures of any size, learned positions stretched cubically."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Glm4vConfig, Glm4vForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.encoders.glm import GlmEncoder
from avl_export.families.hf import meta_model
from avl_export.families.processors.patch_processing import grown_image
from avl_export.families.qwen import FramesFamily, check_cut, qwen_traits, vision_patches
from avl_plugins.errors import quoted


@dataclass(frozen=True, slots=True)
class Glm4v(FramesFamily):
    """A GLM-4V checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Glm4vForConditionalGeneration
    encoder_class: ClassVar[type[nn.Module]] = GlmEncoder


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
    traits = qwen_traits(checkpoint, config, grown_image(checkpoint, patches), None)
    return family(config_class.model_type, checkpoint.folder, traits, model, decoder, patches)


def _check_parts(config: Any, where: str) -> None:
    vision = config.vision_config
    check_cut(vision, where)
    if type(vision.image_size) is not int or vision.image_size < vision.patch_size:
        raise FamilyError(
            f"{where}: expected an image_size of one number, at least a patch of "
            f"{vision.patch_size} pixels, found {quoted(vision.image_size, 40)}; fix config.json"
        )

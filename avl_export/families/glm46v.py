"""GLM-4.6V: GLM-4V by another name, with parts that its configuration may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import Glm46VConfig, Glm46VForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.supported import FamilyError
from avl_export.families.glm4v import Glm4v, load_as
from avl_plugins.errors import quoted

TOWER = "glm4v_vision"


@dataclass(frozen=True, slots=True)
class Glm46V(Glm4v):
    """A GLM-4.6V checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Glm46VForConditionalGeneration


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Glm4v:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    vision = checkpoint.config.get("vision_config")
    tower = vision.get("model_type", TOWER) if isinstance(vision, dict) else TOWER
    if tower != TOWER:
        raise FamilyError(
            f"{checkpoint.folder / 'config.json'}: expected {TOWER} as model_type of "
            f"vision_config, found {quoted(tower, 40)}; this version of avl cannot export it"
        )
    return load_as(Glm46V, Glm46VConfig, checkpoint, dtype)

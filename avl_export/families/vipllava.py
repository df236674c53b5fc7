"""ViP-LLaVA: LLaVA 1.5 that reads several of CLIP's layers through a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.families.encoders.clip import check_clip
from avl_export.families.llava import Llava, load_as


@dataclass(frozen=True, slots=True)
class VipLlava(Llava):
    """A ViP-LLaVA checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = VipLlavaForConditionalGeneration


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Llava:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    return load_as(VipLlava, VipLlavaConfig, checkpoint, dtype, _check_parts)


def _check_parts(config: Any, where: str) -> None:
    check_clip(config.vision_config, where)

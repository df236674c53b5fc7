"""Qwen3-VL with a mixture of experts: all but the decoder's feed-forward parts is Qwen3-VL's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.families.qwen3_vl import Qwen3VL, load_as


class Qwen3VLMoe(Qwen3VL):
    """A Qwen3-VL-MoE checkpoint; see `families.base.Family`."""

    model_class: ClassVar[Any] = Qwen3VLMoeForConditionalGeneration


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> Qwen3VL:
    """Build the model of `checkpoint` on the meta device.

    Raises:
        FamilyError: the config is invalid or asks for something no graph here can do.
    """
    return load_as(Qwen3VLMoe, Qwen3VLMoeConfig, checkpoint, dtype, experts=True)

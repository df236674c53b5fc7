"""Model families, one file each, found by the config's model_type."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from avl_export.checkpoint.original import original_layout
from avl_export.families.base import EncoderGraph, Family, FamilyError, Traits
from avl_plugins.errors import quoted

if TYPE_CHECKING:
    import torch

    from avl_export.checkpoint.checkpoint import Checkpoint

MODULES = {  # model_type -> module in this folder
    "llava": "llava",
    "llava_next": "llava_next",
    "llava_onevision": "llava_onevision",
    "video_llava": "video_llava",
    "internvl": "internvl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
}
SUPPORTED = tuple(MODULES)

__all__ = [
    "SUPPORTED",
    "EncoderGraph",
    "Family",
    "FamilyError",
    "Traits",
    "check_supported",
    "load_family",
]


def check_supported(checkpoint: Checkpoint) -> str:
    """The checkpoint's model_type.

    Raises:
        FamilyError: no family exports it.
    """
    model_type = checkpoint.config.get("model_type")
    original = original_layout(checkpoint.config)
    if original is not None:
        raise FamilyError(
            f"{checkpoint.folder}: expected a checkpoint in transformers' layout, found {original}"
        )
    if model_type not in SUPPORTED:
        raise FamilyError(
            f"{checkpoint.folder}: expected an architecture of {', '.join(SUPPORTED)}, "
            f"found {'no model_type' if model_type is None else quoted(model_type)}; this version "
            "of avl cannot export it"
        )
    return str(model_type)


def load_family(checkpoint: Checkpoint, dtype: torch.dtype) -> Family:
    """The family of `checkpoint`, its modules in `dtype` on the meta device.

    Of a checkpoint whose weights are opened, matrices that are stored apart are not tied.

    Raises:
        FamilyError: unknown architecture, or a variant that the family does not support.
        CheckpointError: its tensors are not those of such a model.
    """
    module = import_module(f"avl_export.families.{MODULES[check_supported(checkpoint)]}")
    family: Family = module.load(checkpoint, dtype)
    if checkpoint.shards:
        from avl_export.checkpoint.tied import untie_stored

        untie_stored(checkpoint, family.model)
    return family

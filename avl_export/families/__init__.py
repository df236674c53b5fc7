"""Model families: the module of each has the name of its config's model_type."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from avl_export.checkpoint.supported import SUPPORTED, FamilyError, check_supported
from avl_export.families.base import EncoderGraph, Family, Traits, runs_on_cpu_alone

if TYPE_CHECKING:
    import torch

    from avl_export.checkpoint.checkpoint import Checkpoint

__all__ = [
    "SUPPORTED",
    "EncoderGraph",
    "Family",
    "FamilyError",
    "Traits",
    "load_family",
    "runs_on_cpu_alone",
]


def load_family(checkpoint: Checkpoint, dtype: torch.dtype) -> Family:
    """The family of `checkpoint`, its modules in `dtype` on the meta device.

    Of a checkpoint whose weights are opened, matrices that are stored apart are not tied.

    Raises:
        FamilyError: unknown architecture, or a variant that the family does not support.
        CheckpointError: its tensors are not those of such a model.
    """
    model_type = check_supported(checkpoint.folder, checkpoint.config)
    module = import_module(f"avl_export.families.{model_type}")
    family: Family = module.load(checkpoint, dtype)
    if checkpoint.told:
        from avl_export.checkpoint.gguf.config import check_told

        check_told(checkpoint.told, cast(Any, family.model).config.text_config, checkpoint.folder)
    if checkpoint.shards:
        from avl_export.checkpoint.tied import untie_stored

        untie_stored(checkpoint, family.model)
    return family

"""Model families, one file each, found by the config's model_type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avl_export.families.base import Family, FamilyError, Traits

if TYPE_CHECKING:
    import torch

    from avl_export.checkpoint import Checkpoint

SUPPORTED = ("llava",)

__all__ = ["SUPPORTED", "Family", "FamilyError", "Traits", "check_supported", "load_family"]


def check_supported(checkpoint: Checkpoint) -> str:
    """The checkpoint's model_type.

    Raises:
        FamilyError: no family exports it.
    """
    model_type = checkpoint.config.get("model_type")
    if model_type not in SUPPORTED:
        raise FamilyError(
            f"{checkpoint.folder}: expected an architecture of {', '.join(SUPPORTED)}, "
            f"found {model_type!r}; this version of avl cannot export it"
        )
    return str(model_type)


def load_family(checkpoint: Checkpoint, dtype: torch.dtype) -> Family:
    """The family of `checkpoint`, its modules in `dtype` on the meta device.

    Raises:
        FamilyError: unknown architecture, or a variant that the family does not support.
    """
    check_supported(checkpoint)
    from avl_export.families import llava

    return llava.load(checkpoint, dtype)

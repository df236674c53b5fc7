"""transformers' model of a checkpoint with an adapter merged, to compare packages with."""

from __future__ import annotations

from torch import nn

from avl_export.check.check import reference_model
from avl_export.checkpoint.adapters.adapter import Adapter
from avl_export.checkpoint.tied import untie_as
from avl_export.families import Family


def merged_reference(family: Family, adapter: Adapter | None) -> nn.Module:
    """The model in fp32 on the CPU.

    Raises:
        CheckError: transformers cannot read the checkpoint.
    """
    model = reference_model(family)
    if adapter is None:
        return model
    untie_as(model, family.model)
    return adapter.apply(model)

"""Two matrices that config.json calls one, and that a checkpoint stores apart.

Merged fine-tunes come so: the configuration is the base's, the output matrix is no longer the
embedding. transformers keeps both where both are stored and differ.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.source import PIECE, Source
from avl_export.checkpoint.weight_map import Placed, map_weights


def untie_stored(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Give each of two tied parameters of `model` its own tensor if `checkpoint` has two.

    Reads both where both are stored, up to the first value that differs.

    Raises:
        CheckpointError: see `map_weights`.
    """
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    if not tied:
        return
    weights = map_weights(checkpoint, model, {name: name for name in checkpoint.shards})
    for target, source in tied.items():
        one, other = weights.places.get(target), weights.places.get(source)
        apart = one is not None and other is not None and not _equal(checkpoint, one, other)
        apart |= weights.packed.get(target) != weights.packed.get(source)
        # A table's rows are looked up as floats, while a linear reads codes.
        if apart or weights.holds_codes(target) or weights.holds_codes(source):
            untie(model, target)


def untie_as(model: nn.Module, family_model: nn.Module) -> None:
    """Untie in `model` what is untied in `family_model`, of the same class."""
    for target, source in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        if family_model.get_parameter(target) is not family_model.get_parameter(source):
            untie(model, target)


def untie(model: nn.Module, target: str) -> None:
    """Give the tied parameter `target` of `model` a tensor of its own, of the same values.

    It still is one of a pair: where a checkpoint stores one of them only, both are read from it.
    """
    path, _, name = target.rpartition(".")
    owner = model.get_submodule(path)
    shared = owner.get_parameter(name)
    setattr(owner, name, nn.Parameter(shared.detach().clone(), requires_grad=False))


def _equal(checkpoint: Checkpoint, one: Placed, other: Placed) -> bool:
    if one == other:
        return True
    if one.record.shape != other.record.shape:
        return False
    sources = [
        Source(placed.key, checkpoint.shards[checkpoint.tensors[placed.key][0]], placed.record)
        for placed in (one, other)
    ]
    rows, *columns = one.record.shape
    step = max(1, PIECE // (4 * int(np.prod(columns, dtype=np.int64))))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        here, there = (source.read_floats(first, last) for source in sources)
        if not np.array_equal(here, there):
            return False
    return True

"""Stored tensors that no graph of a package reads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.weight_files import some
from avl_export.checkpoint.weight_map import WeightMap, tied_pairs


@dataclass(frozen=True, slots=True)
class Unread:
    """Keys of tensors that are left out.

    Attributes:
        strays: those of no weight of the model, as a head for training.
        unused: weights of the model behind what graphs compute, as the last layers of a tower.
    """

    strays: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.strays, *self.unused)

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """A line for each kind that there is."""
        lines = []
        if self.strays:
            lines.append(
                f"{_tensors(len(self.strays))} of no weight of {type(model).__name__} left out: "
                f"{some(self.strays)}"
            )
        if self.unused:
            lines.append(
                f"{_tensors(len(self.unused))} that no graph reads left out: {some(self.unused)}"
            )
        return tuple(lines)


def unread_tensors(
    checkpoint: Checkpoint, weights: WeightMap, model: nn.Module, read: Collection[str]
) -> Unread:
    """What of `checkpoint` is left out.

    Args:
        weights: of the checkpoint.
        read: parameters of `model` that graphs and the embedding's lookup read.
    """
    names = set(read)
    # Of two equal matrices that are tied one is enough.
    names |= {there for here, there in tied_pairs(model) if here in names}
    keys = {weights.places[name].key for name in names if name in weights.places}
    keys |= {p.key for name in names for p in weights.packed.get(name, {}).values()}
    strays = set(weights.strays)
    unused = tuple(key for key in checkpoint.tensors if key not in keys and key not in strays)
    return Unread(weights.strays, unused)


def _tensors(count: int) -> str:
    return "1 stored tensor" if count == 1 else f"{count} stored tensors"

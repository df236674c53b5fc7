"""Features of a tower's states that are added before several decoder layers, picture by picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class StackedFeatures(nn.Module):
    """Features for the decoder layers that they are added before, each with a line break behind.

    Args:
        tower: ends in the states of all layers that are read, joined: [tiles, P, C * states].
        projectors: of each decoder layer, in their order.
        reads: which of the states each projector reads.
        first: whether the first one is for decoder layer 0; otherwise nothing stands for a picture
            there. `scale` is what the decoder multiplies it by.
    """

    def __init__(
        self,
        tower: nn.Module,
        projectors: Sequence[nn.Module],
        reads: Sequence[int],
        line_break: nn.Parameter,
        first: bool,
        scale: float,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.projectors = nn.ModuleList(projectors)
        self.reads, self.states = tuple(reads), max(reads) + 1
        self.line_break = line_break
        self.first, self.scale = first, scale

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[tiles, 3, H, W] -> [tiles * side**2 + 1, C] and [K, tiles * side**2 + 1, C]."""
        states = self.tower(pixel_values).chunk(self.states, dim=-1)
        found = [
            torch.cat([projector(states[state]).flatten(0, 1), self.line_break[None]])
            for projector, state in zip(self.projectors, self.reads, strict=True)
        ]
        if not self.first:
            return torch.zeros_like(found[0]), torch.stack(found)
        begin = found[0] / self.scale
        return (begin,) if len(found) == 1 else (begin, torch.stack(found[1:]))

"""Modules that take the place of a model's own while its forward pass is observed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Layer(nn.Module):
    """Adds something of its own to the states; for all else it is the layer."""

    def __init__(self, layer: nn.Module, added: torch.Tensor) -> None:
        super().__init__()
        self._others = (layer,)  # no module of this one
        self.added = added

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._others[0], name)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states + self.added


class Rotary(nn.Module):
    def forward(self, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)


class Nothing(nn.Module):
    """In place of a linear layer: zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.new_zeros(*rows.shape[:-1], self.width)


class Model(nn.Module):
    """Puts out `hidden`, and has nothing else to say."""

    rope_deltas = None

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Any:
        return _Output(self.hidden)


class _Output:
    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None

"""What each layer reads of a token beside the hidden state (Gemma 3n and 4).

A table has a row for each token, of `size` numbers for each layer. transformers adds to it what a
projection of the embedding gives; all of that is decided before the first layer.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

TABLE = "embed_tokens_per_layer"
PROJECTION, NORM = "per_layer_model_projection", "per_layer_projection_norm"


class LayerInputs(nn.Module):
    """The columns behind the hidden state that a graph reads and hands on, see `graph_io.width`.

    Args:
        text_model: transformers' decoder.
        size: of each layer's part.
        scale: what the table multiplies its rows with.
        first, last: the graph's layers are `first` to `last` - 1.
    """

    def __init__(self, text_model: Any, size: int, scale: float, first: int, last: int) -> None:
        super().__init__()
        config = text_model.config
        self.columns, self.size, self.scale = config.hidden_size, size, scale
        self.layers, self.handed = config.num_hidden_layers - first, last - first
        self.is_first = first == 0
        self._text_model = (text_model,)  # no module of this one
        if self.is_first:
            self.projection, self.norm = (getattr(text_model, name) for name in (PROJECTION, NORM))

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, S, W] -> the hidden state [B, S, C], and the layers' parts [B, S, layers, size]."""
        shape = (*rows.shape[:2], self.layers, self.size)
        beside = rows[..., self.columns :].reshape(shape)
        return rows[..., : self.columns], beside

    def made(self, embeddings: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        """What layers are given, from what is stored of tokens [B, S, layers, size]."""
        if not self.is_first:
            return beside
        made = self._text_model[0].project_per_layer_inputs(embeddings, beside * self.scale)
        return cast(torch.Tensor, made)

    def joined(self, hidden: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        """What the next graph reads: the state behind the last layer, and its layers' parts."""
        return torch.cat([hidden, beside[:, :, self.handed :].flatten(2)], dim=-1)

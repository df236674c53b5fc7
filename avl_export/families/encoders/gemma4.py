"""Gemma 4's tower, its projector, and how transformers is given the same patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from avl_export.families.encoders.frame_attention import frame_attention
from avl_export.families.replicate import repeat
from avl_plugins.graph_io import PATCH_POSITIONS, PIXELS
from avl_runtime.vision import Media
from avl_runtime.vision.patches import Patches

Turns = tuple[torch.Tensor, torch.Tensor]  # cos and sin


class Gemma4Features(nn.Module):
    """The tower on a picture whose patches lie cell by cell; a cell's mean, projected.

    Args:
        tower: a Gemma4VisionModel.
        projector: what makes embeddings of its features.
        scale: what the decoder multiplies embeddings with, by which features are divided.
    """

    def __init__(self, tower: Any, projector: Any, scale: float) -> None:
        super().__init__()
        self.input_proj = tower.patch_embedder.input_proj
        self.positions = tower.patch_embedder.position_embedding_table
        self.inv_freq = tower.encoder.rotary_emb.inv_freq
        self.layers = nn.ModuleList(tower.encoder.layers[: tower.config.num_hidden_layers])
        self.projector, self.scale = projector, scale
        self.merged = tower.config.pooling_kernel_size**2
        self.standardize = tower.config.standardize
        if self.standardize:
            self.std_bias, self.std_scale = tower.std_bias, tower.std_scale

    def forward(self, pixel_values: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """[1, P, 3 * size**2] and [P, 2], row and column -> features [1, cells, C]."""
        channels = pixel_values.reshape(*pixel_values.shape[:2], 3, -1)
        patches = channels.transpose(-1, -2).flatten(-2)
        row, column = position_ids.unbind(-1)
        count, width = self.positions.shape[1:]
        table = self.positions.reshape(2 * count, width)
        places = F.embedding(column, table) + F.embedding(row + count, table)
        hidden = self.input_proj(2 * (patches - 0.5)) + places
        # Of a head the first half turns by columns, the second by rows.
        angles = torch.stack([column, row], -1)[..., None].float() * self.inv_freq.float()
        turns = angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)
        for layer in self.layers:
            hidden = repeat(_run_layer, layer, hidden, turns, self.merged)
        pooled = hidden.reshape(1, -1, self.merged, width).float().mean(2) * width**0.5
        if self.standardize:
            pooled = (pooled - self.std_bias.float()) * self.std_scale.float()
        return cast(torch.Tensor, self.projector(pooled.to(hidden.dtype)) / self.scale)


def _run_layer(layer: Any, hidden: torch.Tensor, turns: Turns, parts: int) -> torch.Tensor:
    seen = _attend(layer.self_attn, layer.input_layernorm(hidden), turns, parts)
    hidden = hidden + layer.post_attention_layernorm(seen)
    made = layer.mlp(layer.pre_feedforward_layernorm(hidden))
    return cast(torch.Tensor, hidden + layer.post_feedforward_layernorm(made))


def _attend(attention: Any, hidden: torch.Tensor, turns: Turns, parts: int) -> torch.Tensor:
    heads = attention.config.num_attention_heads
    shape = (*hidden.shape[:2], heads, attention.head_dim)
    query, key, value = (
        project(hidden).reshape(shape)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    states = (
        _turned(attention.q_norm(query), turns),
        _turned(attention.k_norm(key), turns),
        attention.v_norm(value),
    )
    flat = [one.flatten(-2) for one in states]
    seen = frame_attention(flat[0], flat[1], flat[2], None, heads, parts, attention.scaling)
    return cast(torch.Tensor, attention.o_proj(seen))


def _turned(states: torch.Tensor, turns: Turns) -> torch.Tensor:
    """[1, P, H, D] turned by cos and sin [P, 2, D / 4]."""
    cos, sin = (one[None, :, None] for one in turns)
    near, far = states.reshape(*states.shape[:3], 2, 2, -1).unbind(-2)
    return torch.stack([near * cos - far * sin, far * cos + near * sin], -2).flatten(-3)


def reference_patches(media: Sequence[Media], patches: Patches) -> dict[str, torch.Tensor]:
    """pixel_values [n, P, D] and image_position_ids [n, P, 2] of transformers, smaller ones padded.

    Patches lie line by line, a patch's channels side by side, and a place is column and row.
    """
    most = max(one.inputs[PIXELS].shape[1] for one in media)
    values = np.zeros((len(media), most, 3 * patches.size**2), np.float32)
    places = np.full((len(media), most, 2), -1)
    for number, one in enumerate(media):
        rows, columns = one.inputs[PATCH_POSITIONS].T
        order = np.lexsort((columns, rows))
        cut = one.inputs[PIXELS][0].reshape(len(order), 3, -1).transpose(0, 2, 1)
        values[number, : len(order)] = cut.reshape(len(order), -1)[order]
        places[number, : len(order)] = np.stack([columns, rows], 1)[order]
    return {
        "pixel_values": torch.from_numpy(values),
        "image_position_ids": torch.from_numpy(places),
    }

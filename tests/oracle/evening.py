"""CAAC's visual token calibration (arXiv 2505.21472), from transformers' own attention.

Written from the paper's code. This file must not import avl_runtime or avl_plugins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from oracle.hf_oracle import Oracle, Rules


def factors_of(
    model: Any, white: Mapping[str, Tensor], tokens: Sequence[int], beta: float, layers: int
) -> dict[int, Tensor]:
    """For each of the first layers [H, V]: by how much attention to each image token changes.

    Heads that share a KV head have the mean of their attention evened out.

    Args:
        white: what the model takes, a prompt with white pictures.
        tokens: of each picture.
    """
    oracle = Oracle(model, Rules())
    with torch.inference_mode():
        oracle.turn(white)
        attention = oracle.attention()
    group = oracle.heads // oracle.kv_heads
    found = {}
    for layer in range(layers):
        rows = attention[layer][:, -3:][:, :, oracle.is_image].double()  # [H, 3, V]
        shared = torch.stack([rows[h // group * group :][:group].mean(0) for h in range(len(rows))])
        parts = [
            ((1 - beta) * part + beta * part.mean(-1, keepdim=True)) / part
            for part in shared.split(list(tokens), -1)
        ]
        found[layer] = torch.cat([part.mean(1) for part in parts], -1)
    return found

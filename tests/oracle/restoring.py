"""RESTORE's bias (arXiv 2606.01711), from transformers' own tables of RoPE.

A key n that stands for s tokens gets ln(s (2 - D)) more from a row m, where D is the mean over
frequencies of the cosine of the angle by which the two are turned against each other.

This file must not import avl_runtime or avl_plugins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oracle.reading import decoder_of


def bias_of(model: Any, positions: Tensor, counts: Tensor, biased: Tensor) -> Tensor:
    """[S, S], what each row's scores get; float64.

    Args:
        positions: [axes, S].
        counts: [S], tokens that each key stands for.
        biased: bool [S], which rows' scores get any.
    """
    places = positions[:, None] if len(positions) > 1 else positions
    cos, sin = decoder_of(model).rotary_emb(torch.zeros(1, places.shape[-1], 1), places)
    cos, sin = cos[0].double(), sin[0].double()
    lengths = (cos * cos + sin * sin).mean(1)  # 1, or the square of a scaling
    near = (cos @ cos.T + sin @ sin.T) / cos.shape[1] / lengths
    bias = torch.log(counts.double() * (2 - near))
    return torch.where(biased[:, None], bias, torch.zeros(()).double())

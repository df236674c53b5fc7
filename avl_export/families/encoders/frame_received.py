"""What attention patches receive in encoders that read whole frames (the Qwen-VLs)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from avl_export.families.encoders.clip_attention import middle_of
from avl_export.families.encoders.patch_encoder import Turns, projected

PARTS: Final = 16  # into which scores of all heads are divided, at least: a matter of memory


def watched(depth: int, full: Sequence[int] | None = None) -> tuple[int, int]:
    """The late and the middle one of an encoder's layers.

    Args:
        full: those that attend to whole frames, ascending; None: all of them. The middle one is
            the first of them that lies no earlier than where it would lie among all.
    """
    layers = range(depth) if full is None else full
    middle = next((n for n in layers if n >= middle_of(depth)), layers[-1])
    return layers[-1], middle


def received(
    attention: Any, normed: torch.Tensor, turns: Turns, mask: torch.Tensor | None, parts: int
) -> torch.Tensor:
    """[T, P] float32: what each patch of a frame receives from all, mean of heads.

    Args:
        attention: a module of transformers; `normed` [T, P, C] is what it reads.
        mask: [P], added to the scores of keys; 0 where there is a patch.
        parts: P is a multiple of it.
    """
    frames, count, _ = normed.shape
    heads: int = attention.num_heads
    whole = [n for n in range(1, heads + 1) if heads % n == 0]
    groups = next((n for n in whole if n * parts >= PARTS), heads)
    query, key, _ = projected(attention, normed, turns)
    queries = query.reshape(frames, parts, -1, groups, heads // groups, attention.head_dim)
    keys = key.reshape(frames, count, groups, heads // groups, attention.head_dim)
    seen = torch.ones_like(normed[0, :, 0]) if mask is None else (mask == 0)
    counted = seen.float()
    found = torch.zeros_like(normed[..., 0], dtype=torch.float32)
    for group in range(groups):
        across = keys[:, :, group].permute(0, 2, 3, 1)
        for part in range(parts):
            scores = (queries[:, part, :, group].transpose(1, 2) * attention.scaling) @ across
            scores = scores.float() if mask is None else scores.float() + mask.float()
            weights = scores.softmax(-1) * counted.reshape(parts, -1)[part][:, None]
            found = found + weights.sum((1, 2))
    mean: torch.Tensor = found / (heads * counted.sum())
    return mean


def told(late: torch.Tensor, middle: torch.Tensor, parts: int) -> torch.Tensor:
    """[T, cells, 3] of what patches [T, P] receive; a cell's is the mean of its `parts` patches.

    There is no class token: what all tokens give stands in its place.
    """
    columns = torch.stack([late, late, middle], -1)
    return columns.reshape(late.shape[0], -1, parts, 3).mean(2)

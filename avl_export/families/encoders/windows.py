"""Encoders whose patches look at their window in most layers, and at their frame in a few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from avl_export.families.base import EncoderGraph
from avl_export.families.encoders.frame_received import received, told, watched
from avl_export.families.encoders.patch_encoder import (
    PatchRotary,
    Turns,
    attend_frames,
    embed_patches,
    projected,
    rms_norm,
)
from avl_export.families.replicate import repeat
from avl_plugins.graph_io import ORDER, PATCH_POSITIONS, PIXELS, WINDOW_MASK
from avl_runtime.vision.patches import Patches

MOST_PARTS = 16  # of a frame's queries; with them the largest picture takes 1 GiB of scores


class WindowEncoder(nn.Module):
    """The encoder on frames whose patches lie window by window, some places empty.

    `size` is the number of places in a window. With `tells` attention is put out too.
    """

    def __init__(self, visual: Any, size: int, tells: bool = False) -> None:
        super().__init__()
        self.patch_embed = visual.patch_embed
        self.rotary = PatchRotary(visual.rotary_pos_emb)
        self.blocks = visual.blocks
        self.merger = visual.merger
        self.merge = visual.spatial_merge_unit
        self.full = frozenset(visual.fullatt_block_indexes)
        told_of = tells and self.full
        self.watched = watched(len(self.blocks), sorted(self.full)) if told_of else ()
        self.parts = max(n for n in range(1, MOST_PARTS + 1) if size % n == 0)

    def forward(
        self,
        pixel_values: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor,
        order: torch.Tensor,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """[T, W, S, D], [W, S, 2], [W, S] and [cells], see `Patches.inputs`.

        Returns:
            features [T, cells, C] and, where they are told, attention [T, cells, 3].
        """
        hidden = embed_patches(self.patch_embed.proj, pixel_values.flatten(1, 2))
        turns = self.rotary(position_ids.flatten(0, 1), hidden)
        everywhere = mask.flatten()
        found: dict[int, torch.Tensor] = {}
        for number, block in enumerate(self.blocks):
            if number in self.watched:
                normed = rms_norm(block.norm1, hidden)
                found[number] = received(block.attn, normed, turns, everywhere, self.parts)
            if number in self.full:
                whole = (attend_frames, turns, everywhere, self.parts)
                hidden = repeat(_run_block, block, hidden, *whole)
            else:
                hidden = repeat(_run_block, block, hidden, attend_windows, turns, mask)
        normed = rms_norm(self.merger.ln_q, hidden)
        cells = normed.reshape(hidden.shape[0], -1, self.merger.hidden_size)
        features = cast(torch.Tensor, self.merger.mlp(cells.index_select(1, order)))
        if not self.watched:
            return features
        late, middle = (found[number] for number in self.watched)
        return features, told(late, middle, self.merge).index_select(1, order)


def _run_block(
    block: Any, hidden: torch.Tensor, attend: Callable[..., torch.Tensor], *how: Any
) -> torch.Tensor:
    hidden = hidden + attend(block.attn, rms_norm(block.norm1, hidden), *how)
    return hidden + cast(torch.Tensor, block.mlp(rms_norm(block.norm2, hidden)))


def attend_windows(
    attention: Any,
    hidden: torch.Tensor,
    turns: Turns,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Every patch attends to its window: P = W * S, `mask` [W, S] is added to scores of keys."""
    windows, size = mask.shape
    shape = (hidden.shape[0], windows, size, attention.num_heads, attention.head_dim)
    query, key, value = (
        x.reshape(shape).transpose(2, 3) for x in projected(attention, hidden, turns)
    )
    scores = (query * attention.scaling) @ key.transpose(-1, -2) + mask[:, None, None]
    seen = (scores.softmax(-1) @ value).transpose(2, 3)
    return cast(torch.Tensor, attention.proj(seen.reshape(hidden.shape)))


def windows_graph(
    file: str, visual: nn.Module, patches: Patches, channels: int, dtype: torch.dtype
) -> EncoderGraph:
    """`visual`, which reads frames window by window, as a graph to be traced.

    Raises:
        ValueError: `patches` has no windows.
    """
    if patches.window is None:
        raise ValueError("expected patches in windows, found none")
    windows, size = 3, (patches.window * patches.merge) ** 2
    frame, window, cell = (torch.export.Dim(name) for name in ("frames", "windows", "cells"))
    width = channels * patches.temporal * patches.size**2
    example = {
        PIXELS: torch.empty((2, windows, size, width), dtype=dtype, device="meta"),
        PATCH_POSITIONS: torch.empty((windows, size, 2), dtype=torch.int64, device="meta"),
        WINDOW_MASK: torch.empty((windows, size), dtype=dtype, device="meta"),
        ORDER: torch.empty(5, dtype=torch.int64, device="meta"),
    }
    dynamic = {
        PIXELS: {0: frame, 1: window},
        PATCH_POSITIONS: {0: window},
        WINDOW_MASK: {0: window},
        ORDER: {0: cell},
    }
    plain, telling = (WindowEncoder(visual, size, tells) for tells in (False, True))
    attending = telling if telling.watched else None
    return EncoderGraph(file, plain, example, dynamic, attending=attending)

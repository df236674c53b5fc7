"""Building blocks of encoders that read frames as patches (the Qwen-VLs).

Hidden states are [T, P, C]: T frames, which never look at each other, of P patches. Grid-dependent
index arrays are inputs, made by `avl_runtime.vision.patches.Patches`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from avl_export.families.base import EncoderGraph
from avl_export.families.encoders.frame_attention import frame_attention
from avl_plugins.graph_io import FEATURES, PATCH_POSITIONS, PIXELS, TABLE_ROWS, TABLE_SHARES
from avl_runtime.vision.patches import Patches

Turns = tuple[torch.Tensor, torch.Tensor]  # cos and sin


def embed_patches(projection: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """[T, P, D] -> [T, P, C]: a convolution whose kernel is as large as a patch."""
    weight = projection.weight
    return F.linear(pixel_values, weight.reshape(weight.shape[0], -1), projection.bias)


class PatchRotary(nn.Module):
    """RoPE by row and column; `rotary` is transformers' module."""

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.inv_freq = rotary.inv_freq
        self.scaling = float(rotary.attention_scaling)

    def forward(self, position_ids: torch.Tensor, hidden: torch.Tensor) -> Turns:
        """cos and sin [T, P, head_dim / 2] for positions [P, 2], like `hidden` [T, P, C]."""
        angles = (position_ids.float()[..., None] * self.inv_freq.float()).flatten(1)
        shape = (hidden.shape[0], -1, -1)
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return (
            cos.to(hidden.dtype)[None].expand(shape),
            sin.to(hidden.dtype)[None].expand(shape),
        )


def attend_frames(
    attention: Any,
    hidden: torch.Tensor,
    turns: Turns,
    mask: torch.Tensor | None,
    parts: int,
) -> torch.Tensor:
    """Every patch attends to its whole frame.

    Args:
        mask: [P], added to the scores of keys.
        parts: P is a multiple of it; the more, the less memory.
    """
    query, key, value = projected(attention, hidden, turns)
    heads, scale = attention.num_heads, attention.scaling
    return cast(
        torch.Tensor,
        attention.proj(frame_attention(query, key, value, mask, heads, parts, scale)),
    )


def attend_by_parts(
    attention: Any, hidden: torch.Tensor, turns: Turns | None, mask: torch.Tensor | None, parts: int
) -> torch.Tensor:
    """As `attend_frames` where queries, keys and values have a matrix each; None: without RoPE.

    What is attended to is returned as it is: modules differ in the name of their last matrix.
    """
    heads, scale = attention.num_heads, attention.head_dim**-0.5
    query, key, value = (
        project(hidden) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if turns is not None:
        query, key = (
            torch.onnx.ops.rotary_embedding(states, *turns, num_heads=heads)
            for states in (query, key)
        )
    return frame_attention(query, key, value, mask, heads, parts, scale)


def mix_positions(table: torch.Tensor, places: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """[P, C]: learned positions [N, C] mixed for each patch; [P, K] both, see `Patches.inputs`."""
    return (F.embedding(places, table) * shares[..., None]).sum(1)


def run_block(block: Any, hidden: torch.Tensor, turns: Turns, parts: int) -> torch.Tensor:
    """A layer of an encoder of Qwen2-VL or Qwen3-VL on whole frames [T, P, C]."""
    hidden = hidden + attend_frames(block.attn, block.norm1(hidden), turns, None, parts)
    return cast(torch.Tensor, hidden + block.mlp(block.norm2(hidden)))


def run_siglip(
    layer: Any, hidden: torch.Tensor, parts: int, turns: Turns | None = None
) -> torch.Tensor:
    """A layer of an encoder of SigLIP's on whole frames [T, P, C]."""
    seen = attend_by_parts(layer.self_attn, layer.layer_norm1(hidden), turns, None, parts)
    hidden = hidden + layer.self_attn.out_proj(seen)
    return cast(torch.Tensor, hidden + layer.mlp(layer.layer_norm2(hidden)))


def rms_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """transformers' module `norm` as PyTorch's op, which becomes one of ONNX."""
    return F.rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def frames_graph(
    file: str,
    module: nn.Module,
    patches: Patches,
    channels: int,
    dtype: torch.dtype,
    outputs: tuple[str, ...] = (FEATURES,),
    attending: nn.Module | None = None,
) -> EncoderGraph:
    """`module`, which reads whole frames, as a graph to be traced; see `Patches.inputs`.

    Where a group of frames is one, pictures alone are read, one at a time.
    """
    cell, merged = torch.export.Dim("cells"), patches.merge**2
    patch, count = merged * cell, merged * 5
    frames = 1 if patches.temporal == 1 else 2
    width = channels * patches.temporal * patches.size**2
    example = {
        PIXELS: torch.empty((frames, count, width), dtype=dtype, device="meta"),
        PATCH_POSITIONS: torch.empty((count, 2), dtype=torch.int64, device="meta"),
    }
    if patches.table is not None:
        taps = patches.taps
        example[TABLE_ROWS] = torch.empty((count, taps), dtype=torch.int64, device="meta")
        example[TABLE_SHARES] = torch.empty((count, taps), dtype=dtype, device="meta")
    dynamic: dict[str, dict[int, Any]] = {name: {0: patch} for name in example}
    dynamic[PIXELS] = {1: patch} if frames == 1 else {0: torch.export.Dim("frames"), 1: patch}
    return EncoderGraph(file, module, example, dynamic, outputs, attending)


def projected(
    attention: Any, hidden: torch.Tensor, turns: Turns
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value [T, P, C] of an attention module of transformers."""
    heads, width = attention.num_heads, attention.num_heads * attention.head_dim
    qkv = attention.qkv(hidden)
    turned = torch.onnx.ops.rotary_embedding(qkv[..., : 2 * width], *turns, num_heads=2 * heads)
    query, key = turned.chunk(2, dim=-1)
    return query, key, qkv[..., 2 * width :]

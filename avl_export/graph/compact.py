"""Reversible patches and translations that make traced graphs compact.

transformers spells RMSNorm and RoPE out in elementary operations; ONNX has one op for each. A
linear layer becomes Gemm(transB=1), whose weight keeps the checkpoint's layout, so that it can be
bound in place and stay memory-mapped.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from onnxscript import opset23
from torch import nn

op: Any = opset23  # its annotations want concrete tensor types, a translation has symbolic ones


@contextmanager
def compact(layers: Sequence[nn.Module], root: nn.Module) -> Iterator[None]:
    """Patch the RMSNorms below `root` and the RoPE of `layers` while the block runs.

    Inside, layers expect cos and sin of half size, [B, S, D / 2].
    """
    norms = [m for m in root.modules() if type(m).__name__.endswith("RMSNorm")]
    attention: Any = layers[0].self_attn
    module: Any = sys.modules[type(attention).__module__]
    rotate = module.apply_rotary_pos_emb
    try:
        for norm in norms:
            norm.__dict__["forward"] = types.MethodType(_rms_norm, norm)
        module.apply_rotary_pos_emb = _rotate
        yield
    finally:
        module.apply_rotary_pos_emb = rotate
        for norm in norms:
            norm.__dict__.pop("forward", None)


def _rms_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def _rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **_: object
) -> tuple[torch.Tensor, torch.Tensor]:
    rotary = torch.onnx.ops.rotary_embedding
    return rotary(query, cos, sin), rotary(key, cos, sin)


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    out_features, in_features = weight.shape
    if len(x.shape) == 2:
        return op.Gemm(x, weight, bias, transB=1)
    rows = op.Reshape(x, op.Constant(value_ints=[-1, in_features]))
    shape = op.Concat(op.Shape(x, end=-1), op.Constant(value_ints=[out_features]), axis=0)
    return op.Reshape(op.Gemm(rows, weight, bias, transB=1), shape)


def translation() -> dict[Any, Any]:
    """The custom translation table entries."""
    return {torch.ops.aten.linear.default: _linear}

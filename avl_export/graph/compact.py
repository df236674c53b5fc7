"""Reversible patches and translations that make traced graphs compact.

transformers spells RMSNorm and RoPE out in elementary operations; ONNX has one op for each. A
linear layer becomes Gemm(transB=1), whose weight keeps the checkpoint's layout, so that it can be
bound in place and stay memory-mapped.
"""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from onnxscript import opset23
from torch import nn

from avl_export.families.decoders.decoder import Decoder
from avl_export.families.decoders.rope import APPLY, turn

op: Any = opset23  # its annotations want concrete tensor types, a translation has symbolic ones


@contextmanager
def compact(decoder: Decoder, root: nn.Module) -> Iterator[None]:
    """Patch the RMSNorms below `root` and the RoPE of `decoder` while the block runs.

    What transformers computes otherwise than the ops is left as it is.
    """
    norms = [module for module in root.modules() if _is_rms_norm(module)]
    module: Any = sys.modules[type(decoder.attention).__module__]
    before = getattr(module, APPLY, None)
    try:
        for norm in norms:
            norm.__dict__["forward"] = types.MethodType(_rms_norm, norm)
        if decoder.rope.turned is not None:
            setattr(module, APPLY, partial(_turn, layout=decoder.rope.turned))
        yield
    finally:
        if decoder.rope.turned is not None:
            setattr(module, APPLY, before)
        for norm in norms:
            norm.__dict__.pop("forward", None)


def _is_rms_norm(module: Any) -> bool:
    """Whether a module of transformers does what `_rms_norm` does, tried on random numbers."""
    if not type(module).__name__.endswith("RMSNorm") or not hasattr(module, "variance_epsilon"):
        return False
    if list(module._parameters) != ["weight"] or module._buffers or module._modules:
        return False
    generator = torch.Generator().manual_seed(0)
    like = copy.copy(module)
    weight, hidden = (torch.randn(*shape, generator=generator) for shape in ((8,), (2, 8)))
    like._parameters = {"weight": nn.Parameter(weight)}
    with torch.no_grad():
        return torch.allclose(like(hidden), _rms_norm(like, hidden), atol=1e-5)


def _rms_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def _turn(
    query: torch.Tensor,
    key: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    unsqueeze_dim: int = 1,
    *,
    layout: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key [B, H, S, D], or with another `unsqueeze_dim` [B, S, H, D]."""
    if unsqueeze_dim == 1:
        return turn(query, cos, sin, layout), turn(key, cos, sin, layout)
    turned = [turn(x.transpose(1, 2), cos, sin, layout).transpose(1, 2) for x in (query, key)]
    return turned[0], turned[1]


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

"""Attention over whole frames, as torch.export sees it, and its translation to ONNX nodes.

One head at a time: the scores of all heads together would be by far an encoder's largest array, and
a CPU takes several times longer to fill it. Traced op by op, that many heads would take longer than
all else of an export.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from onnxscript import opset23

op: Any = opset23  # its annotations want concrete tensor types, a translation has symbolic ones

torch.library.define(
    "avl::frame_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, int heads, float scale) -> Tensor",
)


def frame_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    heads: int,
    scale: float,
) -> torch.Tensor:
    """Every row of a frame attends to all of its rows: [T, P, C] each -> [T, P, C].

    `mask` [P] is added to the scores of keys. Only for tracing: it computes nothing.
    """
    out = torch.ops.avl.frame_attention(query, key, value, mask, heads, scale)
    return cast(torch.Tensor, out)


def _shape(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(query)


def _nodes(query: Any, key: Any, value: Any, mask: Any, heads: int, scale: float) -> Any:
    factor = op.CastLike(op.Constant(value_float=scale), query)
    columns = op.Transpose(key, perm=[0, 2, 1])
    if heads == 1:
        return _head(op.Mul(query, factor), columns, value, mask)
    queries = op.Split(op.Mul(query, factor), axis=-1, num_outputs=heads)
    keys = op.Split(columns, axis=1, num_outputs=heads)
    values = op.Split(value, axis=-1, num_outputs=heads)
    parts = [_head(q, k, v, mask) for q, k, v in zip(queries, keys, values, strict=True)]
    return op.Concat(*parts, axis=-1)


def _head(query: Any, columns: Any, value: Any, mask: Any) -> Any:
    scores = op.MatMul(query, columns)
    if mask is not None:
        scores = op.Add(scores, mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def translation() -> dict[Any, Any]:
    """The custom translation table entry."""
    return {torch.ops.avl.frame_attention.default: _nodes}


torch.library.register_fake("avl::frame_attention", _shape)

"""Attention over whole frames, as torch.export sees it, and its translation to ONNX nodes.

Scores are computed one head and one part of the queries at a time: all together would be by far an
encoder's largest array (64 GiB for a picture of 12 megapixels), and a CPU fills it several times
more slowly. Traced op by op, so many small products would take longer than all else of an export.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from onnxscript import opset23

op: Any = opset23  # its annotations want concrete tensor types, a translation has symbolic ones

torch.library.define(
    "avl::frame_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, int heads, int parts, float scale) "
    "-> Tensor",
)


def frame_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    heads: int,
    parts: int,
    scale: float,
) -> torch.Tensor:
    """Every row of a frame attends to all of its rows: [T, P, C] each -> [T, P, C].

    Only for tracing: it computes nothing.

    Args:
        mask: [P], added to the scores of keys.
        parts: into how many the queries of a frame are divided; P is a multiple.
    """
    out = torch.ops.avl.frame_attention(query, key, value, mask, heads, parts, scale)
    return cast(torch.Tensor, out)


def _shape(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(query)


def _nodes(
    query: Any, key: Any, value: Any, mask: Any, heads: int, parts: int, scale: float
) -> Any:
    scaled = op.Mul(query, op.CastLike(op.Constant(value_float=scale), query))
    shape = op.Constant(value_ints=[0, parts, -1, query.shape[-1]])
    columns = _split(op.Transpose(key, perm=[0, 2, 1]), 1, heads)
    values = _split(value, -1, heads)
    done = []
    for part in _split(op.Reshape(scaled, shape), 1, parts):
        queries = _split(op.Squeeze(part, op.Constant(value_ints=[1])), -1, heads)
        seen = [_head(q, k, v, mask) for q, k, v in zip(queries, columns, values, strict=True)]
        done.append(op.Concat(*seen, axis=-1))
    return op.Concat(*done, axis=1)


def _split(x: Any, axis: int, count: int) -> Sequence[Any]:
    return [x] if count == 1 else op.Split(x, axis=axis, num_outputs=count)


def _head(query: Any, columns: Any, value: Any, mask: Any) -> Any:
    scores = op.MatMul(query, columns)
    if mask is not None:
        scores = op.Add(scores, mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def translation() -> dict[Any, Any]:
    """The custom translation table entry."""
    return {torch.ops.avl.frame_attention.default: _nodes}


torch.library.register_fake("avl::frame_attention", _shape)

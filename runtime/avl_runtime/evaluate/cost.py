"""Arithmetic of a request by formula: 4 n d² + 2 n² d + 3 n d m a layer (FastV, arXiv 2403.06764).

n rows, d hidden size, m the feed-forward width; grouped KV heads shrink the two KV projections. A
multiplication with its addition counts as one, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from avl_runtime.manifest import Dims


def prefill_flops(dims: Dims, rows: Sequence[int]) -> float:
    """Of reading a prompt; `rows` [L] is how many rows each layer computes."""
    return float(sum(_layer(dims, n, n * n) for n in rows))


def decode_flops(dims: Dims, read: Sequence[float]) -> float:
    """Of one decode step; `read` [L] is how many cached rows each layer reads, on average."""
    return float(sum(_layer(dims, 1, n + 1) for n in read))


def _layer(dims: Dims, rows: int, pairs: float) -> float:
    heads = dims.num_heads * dims.head_dim
    grouped = dims.num_kv_heads * dims.head_dim
    projections = rows * dims.hidden_size * (2 * heads + 2 * grouped)
    feed_forward = 3 * rows * dims.hidden_size * dims.intermediate_size
    return projections + 2 * pairs * heads + feed_forward

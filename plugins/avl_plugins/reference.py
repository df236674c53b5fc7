"""What the ops mean, in plain numpy: the oracle every other form is tested against.

Nothing here is fast. Arithmetic is in float64, results are cast to the types of the schema.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from avl_plugins.errors import OpError
from avl_plugins.schema import (
    BIASED_CACHE_ATTENTION,
    BLOCK_CACHE_ATTENTION,
    GATED_DELTA_RULE,
    MOST_CODE,
    MOST_HALF,
    QUANTIZED_CACHE_ATTENTION,
    SHORT_CONVOLUTION,
    SPLIT_CACHE_ATTENTION,
    STANDING_BIAS,
    WINDOW_CACHE_ATTENTION,
    Op,
    bind_dims,
    rotation,
)
from avl_plugins.schema.states import NORM_EPSILON

Float = npt.NDArray[np.floating[Any]]  # the model's type T
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Int8 = npt.NDArray[np.int8]
Double = npt.NDArray[np.float64]


def split_cache_attention(
    q: Float,
    k_new: Float,
    v_new: Float,
    k_active: Float,
    v_active: Float,
    active_len: Int64,
    k_parked: Float,
    v_parked: Float,
    parked_len: Int64,
    row_weights: Float32,
    *,
    scale: float,
) -> tuple[Float, Float32, Float32, Float32]:
    """Attention of new rows over active rows, parked rows and, causally, themselves.

    Shapes and meaning: `schema.SPLIT_CACHE_ATTENTION`.

    Returns:
        out [B, H, S, D] in q's type, and the masses on active [B, Hkv, R, A], parked
        [B, Hkv, R, P] and new rows [B, Hkv, R, S] in float32.

    Raises:
        OpError: shapes do not fit, or a length is negative or past its capacity.
    """
    active_inputs = (k_active, v_active, active_len)
    parked_inputs = (k_parked, v_parked, parked_len)
    inputs = (q, k_new, v_new, *active_inputs, *parked_inputs, row_weights)
    dims = _bind(SPLIT_CACHE_ATTENTION, inputs)
    rows = np.arange(dims["S"])
    causal = np.broadcast_to(rows[None, :] <= rows[:, None], (dims["B"], len(rows), len(rows)))
    everything = np.ones((dims["B"], len(rows), dims["A"]), np.bool_)
    return _attend(inputs, dims, everything, causal, scale)


def block_cache_attention(
    *inputs: npt.NDArray[Any], scale: float
) -> tuple[Float, Float32, Float32, Float32]:
    """The same where new rows may see later ones: `schema.BLOCK_CACHE_ATTENTION`.

    Args:
        inputs: in the schema's order, row_ends [B, S] last.

    Raises:
        OpError: as `split_cache_attention`, or a row does not see itself or more than there are.
    """
    dims = _bind(BLOCK_CACHE_ATTENTION, inputs)
    *others, row_ends = inputs
    everything = np.ones((dims["B"], dims["S"], dims["A"]), np.bool_)
    return _attend(tuple(others), dims, everything, _before(row_ends, dims), scale)


def window_cache_attention(
    *inputs: npt.NDArray[Any], scale: float, window: int
) -> tuple[Float, Float32, Float32, Float32]:
    """The same of rows that see no further back than `window`: `schema.WINDOW_CACHE_ATTENTION`.

    Args:
        inputs: in the schema's order, row_ends, row_positions and active_positions last.

    Raises:
        OpError: as `block_cache_attention`.
    """
    dims = _bind(WINDOW_CACHE_ATTENTION, inputs)
    *others, row_ends, row_positions, active_positions = inputs
    least = row_positions[:, :, None] - window
    near = row_positions[:, None] > least
    on_active = active_positions[:, None] > least
    return _attend(tuple(others), dims, on_active, _before(row_ends, dims) & near, scale)


def biased_cache_attention(
    *inputs: npt.NDArray[Any], scale: float
) -> tuple[Float, Float32, Float32, Float32]:
    """The same with a bias added to scores: `schema.BIASED_CACHE_ATTENTION`.

    Args:
        inputs: in the schema's order, bias_active, bias_parked and bias_new last.

    Raises:
        OpError: as `split_cache_attention`.
    """
    dims = _bind(BIASED_CACHE_ATTENTION, inputs)
    rows, (*biases,) = np.arange(dims["S"]), inputs[10:]
    causal = np.broadcast_to(rows[None, :] <= rows[:, None], (dims["B"], len(rows), len(rows)))
    everything = np.ones((dims["B"], len(rows), dims["A"]), np.bool_)
    lead = dims["B"], dims["Hkv"], dims["S"]
    bias = np.concatenate([np.broadcast_to(one, (*lead, one.shape[3])) for one in biases], 3)
    return _attend(inputs[:10], dims, everything, causal, scale, bias)


def standing_bias(nearness: Float32, row_standing: Int64, key_standing: Int64) -> Double:
    """RESTORE's bias [B, F, S, K]: `schema.STANDING_BIAS`.

    Raises:
        OpError: shapes do not fit.
    """
    dims = _bind(STANDING_BIAS, (nearness, row_standing, key_standing))
    found = np.zeros((dims["B"], dims["F"], dims["S"], dims["K"]))
    for at in np.ndindex(found.shape):
        *row, row_count = row_standing[at[0], at[2]].tolist()
        *key, count = key_standing[at[0], at[1], at[3]].tolist()
        if row_count > 0 and count > 0:
            axes = zip(nearness.tolist(), row, key, strict=True)
            found[at] = np.log(count * (2 - sum(table[abs(m - n)] for table, m, n in axes)))
    return found


def _before(row_ends: Int64, dims: dict[str, int]) -> npt.NDArray[np.bool_]:
    """[B, S, S], which new rows each sees."""
    rows, count = np.arange(dims["S"]), dims["S"]
    if (row_ends <= rows).any() or row_ends.max() > count:
        raise OpError(
            f"row_ends: expected numbers of new rows, {count} at most, that each row itself is "
            f"among, found {row_ends.tolist()}; pass those"
        )
    return rows < row_ends[:, :, None]


def _attend(
    inputs: tuple[Any, ...],
    dims: dict[str, int],
    sees_active: npt.NDArray[np.bool_],
    sees_new: npt.NDArray[np.bool_],
    scale: float,
    bias: npt.NDArray[Any] | None = None,
) -> tuple[Float, Float32, Float32, Float32]:
    """Attention of rows that see some of the active [B, S, A] and of the new rows [B, S, S].

    Args:
        bias: [B, Hkv, S, A + P + S], added to scores.
    """
    q, k_new, v_new, k_active, v_active, active_len, k_parked, v_parked, *others = inputs
    parked_len, row_weights = others
    active, parked, new = dims["A"], dims["P"], dims["S"]
    _check_lengths("active_len", active_len, active)
    _check_lengths("parked_len", parked_len, parked)
    heads, kv_heads = dims["H"], dims["Hkv"]
    group = heads // kv_heads

    out = np.zeros(q.shape)
    mass = np.zeros((dims["B"], kv_heads, dims["R"], active + parked + new))
    for b in range(dims["B"]):
        visible = np.concatenate(
            [
                sees_active[b] & (np.arange(active) < active_len[b]),
                np.broadcast_to(np.arange(parked) < parked_len[b], (new, parked)),
                sees_new[b],
            ],
            axis=1,
        )
        for h in range(heads):
            kv = h // group
            keys = np.concatenate([k_active[b, kv], k_parked[b, kv], k_new[b, kv]])
            values = np.concatenate([v_active[b, kv], v_parked[b, kv], v_new[b, kv]])
            seen = visible.any(axis=0)  # garbage in the other rows must not reach a product
            scores = np.full(visible.shape, -np.inf)
            scores[:, seen] = q[b, h].astype(np.float64) @ keys[seen].astype(np.float64).T * scale
            if bias is not None:
                scores += bias[b, kv]
            scores[~visible] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            probabilities = weights / weights.sum(axis=1, keepdims=True)
            out[b, h] = probabilities[:, seen] @ values[seen].astype(np.float64)
            mass[b, kv] += row_weights[b].astype(np.float64) @ probabilities / group
    on_active, on_parked, on_new = np.split(
        mass.astype(np.float32), [active, active + parked], axis=3
    )
    return out.astype(q.dtype), on_active, on_parked, on_new


def quantized_cache_attention(
    q: Float,
    k_new: Float,
    v_new: Float,
    k_active: Int8,
    v_active: Int8,
    k_active_scale: Float32,
    v_active_scale: Float32,
    active_len: Int64,
    k_parked: Int8,
    v_parked: Int8,
    k_parked_scale: Float32,
    v_parked_scale: Float32,
    parked_len: Int64,
    row_weights: Float32,
    *,
    scale: float,
) -> tuple[Any, ...]:
    """The same over rows that are codes.

    Shapes and meaning: `schema.QUANTIZED_CACHE_ATTENTION`.

    Returns:
        out and masses as `split_cache_attention`; then of the new rows codes of keys and values
        [B, Hkv, S, D] int8, and their scales [B, Hkv, S, 1] float32.

    Raises:
        OpError: as `split_cache_attention`.
    """
    active = (k_active, v_active, k_active_scale, v_active_scale, active_len)
    parked = (k_parked, v_parked, k_parked_scale, v_parked_scale, parked_len)
    _bind(QUANTIZED_CACHE_ATTENTION, (q, k_new, v_new, *active, *parked, row_weights))
    turn = rotation(q.shape[-1])
    k_codes, k_scale = coded(k_new.astype(np.float64) @ turn)
    v_codes, v_scale = coded(v_new.astype(np.float64))
    attended = split_cache_attention(
        q.astype(np.float64) @ turn,
        decoded(k_codes, k_scale),
        decoded(v_codes, v_scale),
        decoded(k_active, k_active_scale),
        decoded(v_active, v_active_scale),
        active_len,
        decoded(k_parked, k_parked_scale),
        decoded(v_parked, v_parked_scale),
        parked_len,
        row_weights,
        scale=scale,
    )
    out, *masses = attended
    return out.astype(q.dtype), *masses, k_codes, v_codes, k_scale, v_scale


def halved(rows: Float) -> npt.NDArray[np.float16]:
    """Rows as numbers of 16 bits; HALF_CACHE_ATTENTION attends to these."""
    return rows.clip(-MOST_HALF, MOST_HALF).astype(np.float16)


def coded(rows: Float) -> tuple[Int8, Float32]:
    """Rows [..., D] as codes [..., D], and a scale [..., 1] for each."""
    scale = np.abs(rows).max(axis=-1, keepdims=True) / MOST_CODE
    codes = np.rint(rows / np.where(scale > 0, scale, 1))
    return codes.astype(np.int8), scale.astype(np.float32)


def decoded(codes: Int8, scale: Float32) -> Double:
    """The numbers [..., D] that codes stand for."""
    return codes.astype(np.float64) * scale


def unpacked(packed: npt.NDArray[np.uint8], scale: Float32, bits: int) -> Double:
    """The numbers [..., D] that codes of 4 or 2 bits [..., W] of parked rows stand for."""
    shifts = range(0, 8, bits)
    codes = np.concatenate([packed >> shift & (1 << bits) - 1 for shift in shifts], -1)
    numbers: Double = (codes - (2**bits - 1) / 2) * scale.astype(np.float64)
    return numbers


def _bind(op: Op, arrays: tuple[npt.NDArray[Any], ...]) -> dict[str, int]:
    names = (value.name for value in op.inputs)
    return bind_dims(op, {n: a.shape for n, a in zip(names, arrays, strict=True)})


def _check_lengths(name: str, lengths: Int64, capacity: int) -> None:
    if lengths.min() < 0 or lengths.max() > capacity:
        raise OpError(
            f"SplitCacheAttention: expected {name} from 0 to {capacity}, found {lengths.tolist()}; "
            "pass how many rows are in use"
        )


def short_convolution(x: Float, conv_state: Float, weight: Float) -> tuple[Float, Float]:
    """A causal convolution of each channel; shapes and meaning: `schema.SHORT_CONVOLUTION`.

    Raises:
        OpError: shapes do not fit.
    """
    dims = _bind(SHORT_CONVOLUTION, (x, conv_state, weight))
    rows = np.concatenate([conv_state, x], 1).astype(np.float64)
    y = np.zeros(x.shape)
    for s in range(dims["S"]):
        for j in range(dims["K"]):
            y[:, s] += rows[:, s + j] * weight[:, j]
    return y.astype(x.dtype), rows[:, dims["S"] :].astype(x.dtype)


def short_convolution_silu(x: Float, conv_state: Float, weight: Float) -> tuple[Float, Float]:
    """The same with its activation; `schema.SHORT_CONVOLUTION_SILU`.

    Raises:
        OpError: shapes do not fit.
    """
    sums, state = short_convolution(x.astype(np.float64), conv_state, weight)
    return (sums / (1 + np.exp(-sums))).astype(x.dtype), state.astype(x.dtype)


def gated_delta_rule(
    q: Float, k: Float, v: Float, decay: Float32, beta: Float, delta_state: Float32
) -> tuple[Float, Float32]:
    """The rule row by row; shapes and meaning: `schema.GATED_DELTA_RULE`.

    Raises:
        OpError: shapes do not fit.
    """
    dims = _bind(GATED_DELTA_RULE, (q, k, v, decay, beta, delta_state))
    group = dims["Hv"] // dims["Hk"]
    out, state = np.zeros(v.shape), delta_state.astype(np.float64)
    for b in range(dims["B"]):
        for s in range(dims["S"]):
            for h in range(dims["Hv"]):
                query = _unit(q[b, s, h // group]) / np.sqrt(dims["Dk"])
                key = _unit(k[b, s, h // group])
                kept = np.exp(np.float64(decay[b, s, h])) * state[b, h]
                change = np.float64(beta[b, s, h]) * (v[b, s, h] - kept.T @ key)
                state[b, h] = kept + np.outer(key, change)
                out[b, s, h] = state[b, h].T @ query
    return out.astype(v.dtype), state.astype(np.float32)


def _unit(row: Float) -> Double:
    wide = row.astype(np.float64)
    return np.asarray(wide / np.sqrt((wide * wide).sum() + NORM_EPSILON), np.float64)

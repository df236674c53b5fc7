"""What the attention kernels share: tiles of query rows, and walks over tiles of keys.

A tile of query rows is packed: row s * G + g is new row s under head g of a KV head's group, so
that keys and values are read once for the whole group. A walk visits tiles of BN keys in the order
active, parked, new. Scores and log-sum-exps are in the log2 domain.

One rule here is invisible to the interpreter: a pointer chosen with `tl.where` loses its known
alignment, and without the `tl.multiple_of` hint every load is of a single element.
"""

from __future__ import annotations

import triton
import triton.language as tl

MOST_AXES = tl.constexpr(3)  # `catalog.MOST_AXES`


@triton.jit
def packed_rows(tile, kv_pair, S, G, BM: tl.constexpr):
    """Query rows of a row tile.

    Returns:
        [BM] each: the row of q [B * H * S, D], the new row s, whether there is such a row, and how
        many new rows it sees. Rows that are not there see all, so that none is without a key.
    """
    packed = tile * BM + tl.arange(0, BM)
    live = packed < S * G
    s = tl.minimum(packed // G, S - 1)
    row = (kv_pair * G + packed % G) * S + s
    return row, s, live, tl.where(live, s + 1, S)


@triton.jit
def load_rows(
    pointer, rows, end, column, D: tl.constexpr, W: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """Columns [column, column + W) of rows [BN] of a [*, D] array, zero from row `end` on."""
    d = column + tl.arange(0, W)
    pointers = tl.multiple_of(pointer + rows[:, None] * D + d[None, :], (1, 16))
    if MASKED:
        return tl.load(pointers, mask=(rows[:, None] < end) & (d[None, :] < D), other=0.0)
    elif D % W:
        return tl.load(pointers, mask=(rows[:, None] >= 0) & (d[None, :] < D), other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def load_queries(q_ptr, row, live, D: tl.constexpr, DP: tl.constexpr):
    """Query rows [BM, DP], zero where there are none."""
    d = tl.arange(0, DP)
    mask = live[:, None] & (d[None, :] < D)
    return tl.load(q_ptr + row[:, None] * D + d[None, :], mask=mask, other=0.0)


@triton.jit
def places(pair, k_active_ptr, v_active_ptr, k_parked_ptr, v_parked_ptr, k_new_ptr, v_new_ptr,
           A, P, S, D: tl.constexpr):  # fmt: skip
    """Pointers to row 0 of a KV head: keys and values, each (active, parked, new)."""
    keys = (k_active_ptr + pair * A * D, k_parked_ptr + pair * P * D, k_new_ptr + pair * S * D)
    values = (v_active_ptr + pair * A * D, v_parked_ptr + pair * P * D, v_new_ptr + pair * S * D)
    return keys, values


@triton.jit
def choose(t, tiles, of):
    """`of` (active, parked, new) for tile `t` of a walk of `tiles` (active, parked) tiles."""
    return tl.where(t < tiles[0], of[0], tl.where(t < tiles[0] + tiles[1], of[1], of[2]))


@triton.jit
def locate(t, tiles, firsts, BN: tl.constexpr):
    """The rows [BN] of tile `t` in its place; each place's tiles begin at row `firsts`."""
    begin = choose(t, tiles, (0, tiles[0], tiles[0] + tiles[1]))
    return choose(t, tiles, firsts) + (t - begin) * BN + tl.arange(0, BN)


@triton.jit
def rows_stand(stand, s):
    """Whether any of the rows `s` [BM] stands for a token."""
    _, row_ptr, _, _, X, _ = stand
    return tl.max(tl.load(row_ptr + s * (X + 1) + X), 0) > 0


@triton.jit
def biased(score, stand, stands, t, tiles, s, rows, end, MASKED: tl.constexpr):
    """Scores [BM, BN] with RESTORE's bias, in the log2 domain: 0 if row or key stands for none.

    No key's place is read from row `end` on. Behind a condition, here `stands` of the row tile, no
    load is taken for one that has to come ahead through shared memory.

    Args:
        stand: nearness [X, M], where rows stand [S, X + 1] and where active and parked keys do, of
            one sequence and KV head; then X and M.
    """
    near_ptr, row_ptr, active_ptr, parked_ptr, X, M = stand
    if stands:
        key = choose(t, tiles, (active_ptr, parked_ptr, row_ptr)) + rows * (X + 1)
        row, there = row_ptr + s * (X + 1), rows >= 0
        if MASKED:
            there = rows < end
        near = tl.zeros_like(score)
        for x in tl.static_range(MOST_AXES):
            if x < X:
                at = tl.load(row + x).to(tl.int32)
                key_at = tl.load(key + x, mask=there, other=0).to(tl.int32)
                near += tl.load(near_ptr + x * M + tl.abs(at[:, None] - key_at[None, :]))
        count = tl.load(key + X, mask=there, other=0)
        both = (tl.load(row + X) > 0)[:, None] & (count > 0)[None, :]
        score += tl.log2(tl.where(both, count.to(tl.float32)[None, :] * (2 - near), 1.0))
    return score


@triton.jit
def score(q, key, rows, seen, end, scale, D: tl.constexpr, DP: tl.constexpr, MASKED: tl.constexpr):
    """Scores [BM, BN], -inf from key row `seen` [BM] on; no row is read from `end` on."""
    k = load_rows(key, rows, end, 0, D, DP, MASKED)
    s = tl.dot(q, tl.trans(k)) * scale
    if MASKED:
        s = tl.where(rows[None, :] < seen[:, None], s, float("-inf"))
    return s


@triton.jit
def accumulate(s, v, m, norm, acc):
    """One step of the online softmax (Milakov and Gimelshein, arXiv 1805.02867).

    The first tile of any walk has a key for every row: cached rows are seen by all, and the first
    new row too. So the new maximum is never -inf.
    """
    m_new = tl.maximum(m, tl.max(s, 1))
    p = tl.exp2(s - m_new[:, None])
    alpha = tl.exp2(m - m_new)
    norm = norm * alpha + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])
    return m_new, norm, acc


@triton.jit
def attend(q, keys, values, stand, n_active, n_parked, s, seen, S, column, scale,
           D: tl.constexpr, DP: tl.constexpr, W: tl.constexpr, BM: tl.constexpr,
           BN: tl.constexpr, BIASED: tl.constexpr):  # fmt: skip
    """Attention of one row tile over everything: running maximum, sum [BM] and output [BM, W].

    Tiles that every row sees whole come first and need no masks.
    """
    m = tl.full([BM], float("-inf"), tl.float32)
    norm = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, W], tl.float32)
    stands = rows_stand(stand, s) if BIASED else False
    full = (n_active // BN, n_parked // BN, (tl.min(s, 0) + 1) // BN)
    used = (n_active, n_parked, S)
    for t in range(full[0] + full[1] + full[2]):
        rows = locate(t, full, (0, 0, 0), BN)
        x = score(q, choose(t, full, keys), rows, seen, 0, scale, D, DP, False)
        if BIASED:
            x = biased(x, stand, stands, t, full, s, rows, 0, False)
        v = load_rows(choose(t, full, values), rows, 0, column, D, W, False)
        m, norm, acc = accumulate(x, v, m, norm, acc)
    firsts = (full[0] * BN, full[1] * BN, full[2] * BN)
    rest = (
        (n_active > firsts[0]).to(tl.int32),
        (n_parked > firsts[1]).to(tl.int32),
        tl.cdiv(tl.max(s, 0) + 1, BN) - full[2],
    )
    for t in range(rest[0] + rest[1] + rest[2]):
        rows = locate(t, rest, firsts, BN)
        end = choose(t, rest, used)
        limit = tl.where(t < rest[0] + rest[1], end, seen)
        x = score(q, choose(t, rest, keys), rows, limit, end, scale, D, DP, True)
        if BIASED:
            x = biased(x, stand, stands, t, rest, s, rows, end, True)
        v = load_rows(choose(t, rest, values), rows, end, column, D, W, True)
        m, norm, acc = accumulate(x, v, m, norm, acc)
    return m, norm, acc


@triton.jit
def mean_weights(row_weights_ptr, b, r, R, s, live, S, G):
    """Weights [BM] of packed rows in weighting `r`, over G: a mass is a mean over the group."""
    mask = live & (s < tl.where(r < R, S, 0))
    return tl.load(row_weights_ptr + (b * R + r) * S + s, mask=mask, other=0.0) / G


@triton.jit
def weighted_tiles(row_weights_ptr, b, r, R, first, S, G, BM: tl.constexpr):
    """Bit i: whether row tile `first` + i has a weight in weighting `r` or `r` + 1."""
    tile = tl.arange(0, 32)
    packed = (first + tile)[:, None] * BM + tl.arange(0, BM)[None, :]
    live = packed < S * G
    s = packed // G
    found = tl.abs(mean_weights(row_weights_ptr, b, r, R, s, live, S, G))
    found += tl.abs(mean_weights(row_weights_ptr, b, r + 1, R, s, live, S, G))
    return tl.sum((tl.max(found, 1) > 0).to(tl.int32) << tile, 0)

"""Decode: few query rows over a long cache, split over the keys so that a small batch fills a GPU.

Every program attends to its share of the key tiles and leaves a partial result; the last one of a
KV head to finish, found with a counter, combines them (Flash-Decoding with a semaphore in place of
its second launch). Scores are kept where a row has a weight; a second launch, needed only if there
are weights, turns them into mass.
"""

from __future__ import annotations

import triton
import triton.language as tl

from avl_plugins.kernels.tiles import (
    accumulate,
    choose,
    load_queries,
    load_rows,
    locate,
    mean_weights,
    packed_rows,
    places,
    score,
)


@triton.jit(do_not_specialize=["S", "A", "P", "R", "G", "scale_bits", "splits"])
def decode(
    q_ptr,  # [B, Hkv * G, S, D], S * G <= BM
    k_new_ptr, v_new_ptr,  # [B, Hkv, S, D]
    k_active_ptr, v_active_ptr,  # [B, Hkv, A, D]
    active_len_ptr,  # [B] int64
    k_parked_ptr, v_parked_ptr,  # [B, Hkv, P, D]
    parked_len_ptr,  # [B] int64
    row_weights_ptr,  # [B, R, S] float32
    S, A, P, R, G, scale_bits, splits,
    out_ptr,  # [B, Hkv * G, S, D]
    scores_ptr,  # workspace [B, Hkv, BM, A + P + S] float32
    lse_ptr,  # workspace [B, Hkv, BM] float32
    partial_ptr,  # workspace [B, Hkv, splits, BM, DP] float32
    softmax_ptr,  # workspace [B, Hkv, splits, 2, BM] float32
    counter_ptr,  # workspace [B, Hkv] int32, zero on entry and on exit
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (splits, Hkv, B); `scale_bits` holds float32(scale * log2(e))."""
    split, kv, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = (b * tl.num_programs(1) + kv).to(tl.int64)
    scale = scale_bits.to(tl.float32, bitcast=True)
    n_active = tl.load(active_len_ptr + b).to(tl.int32)
    n_parked = tl.load(parked_len_ptr + b).to(tl.int32)
    keys, values = places(pair, k_active_ptr, v_active_ptr, k_parked_ptr, v_parked_ptr,
                          k_new_ptr, v_new_ptr, A, P, S, D)  # fmt: skip
    row, s, live, seen = packed_rows(0, pair, S, G, BM)
    q = load_queries(q_ptr, row, live, D, DP)
    weighted = 0.0
    for r in range(R):
        weighted += tl.max(tl.abs(mean_weights(row_weights_ptr, b, r, R, s, live, S, G)), 0)

    n = tl.arange(0, BM)
    d = tl.arange(0, DP)
    columns = A + P + S
    tiles = (tl.cdiv(n_active, BN), tl.cdiv(n_parked, BN), tl.cdiv(S, BN))
    used = (n_active, n_parked, S)
    total = tiles[0] + tiles[1] + tiles[2]
    share = tl.cdiv(total, splits)
    m = tl.full([BM], float("-inf"), tl.float32)
    norm = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    for t in range(split * share, tl.minimum(total, (split + 1) * share)):
        rows = locate(t, tiles, (0, 0, 0), BN)
        end = choose(t, tiles, used)
        limit = tl.where(t < tiles[0] + tiles[1], end, seen)
        x = score(q, choose(t, tiles, keys), rows, limit, end, scale, D, DP, True)
        v = load_rows(choose(t, tiles, values), rows, end, 0, D, DP, True)
        at = (pair * BM + n)[:, None] * columns + choose(t, tiles, (0, A, A + P)) + rows[None, :]
        keep = live[:, None] & (rows[None, :] < tl.where(weighted > 0, end, 0))
        tl.store(scores_ptr + at, x, mask=keep)
        m, norm, acc = accumulate(x, v, m, norm, acc)

    part = (pair * splits + split) * BM
    tl.store(partial_ptr + (part + n)[:, None] * DP + d[None, :], acc, mask=live[:, None])
    tl.store(softmax_ptr + 2 * part + n, m, mask=live)
    tl.store(softmax_ptr + 2 * part + BM + n, norm, mask=live)
    # Without the barrier another warp's stores could come after the release below.
    tl.debug_barrier()
    if tl.atomic_add(counter_ptr + pair, 1, sem="acq_rel", scope="gpu") == splits - 1:
        m, norm, acc = _combined(partial_ptr, softmax_ptr, pair * splits, splits, live, BM, DP)
        out = (acc / norm[:, None]).to(out_ptr.dtype.element_ty)
        mask = live[:, None] & (d[None, :] < D)
        tl.store(out_ptr + row[:, None] * D + d[None, :], out, mask=mask)
        tl.store(lse_ptr + pair * BM + n, m + tl.log2(norm), mask=live)
        tl.store(counter_ptr + pair, 0)


@triton.jit
def _combined(partial_ptr, softmax_ptr, first, splits, live, BM: tl.constexpr, DP: tl.constexpr):
    """The partial results `first` to `first` + `splits` as one: maximum, sum [BM] and [BM, DP].

    Later ones may be of no keys at all, the first never is.
    """
    n = tl.arange(0, BM)
    d = tl.arange(0, DP)
    m = tl.full([BM], float("-inf"), tl.float32)
    norm = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    # .cg: what other programs wrote is in L2, never in this one's L1.
    for i in range(splits):
        part = (first + i) * BM
        at = partial_ptr + (part + n)[:, None] * DP + d[None, :]
        acc_i = tl.load(at, mask=live[:, None], other=0.0, cache_modifier=".cg")
        at = softmax_ptr + 2 * part + n
        m_i = tl.load(at, mask=live, other=0.0, cache_modifier=".cg")
        norm_i = tl.load(at + BM, mask=live, other=1.0, cache_modifier=".cg")
        m_new = tl.maximum(m, m_i)
        old, new = tl.exp2(m - m_new), tl.exp2(m_i - m_new)
        norm = norm * old + norm_i * new
        acc = acc * old[:, None] + acc_i * new[:, None]
        m = m_new
    return m, norm, acc


@triton.jit(do_not_specialize=["S", "A", "P", "R", "G"])
def decode_mass(
    row_weights_ptr,  # [B, R, S] float32
    scores_ptr,  # [B, Hkv, BM, A + P + S] float32, from `decode`
    lse_ptr,  # [B, Hkv, BM] float32, from `decode`
    active_len_ptr, parked_len_ptr,  # [B] int64
    S, A, P, R, G,
    mass_active_ptr, mass_parked_ptr, mass_new_ptr,  # [B, Hkv, R, A | P | S] float32
    BM: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of BJ keys of A, P and S, Hkv, B * ceil(R / 2)): two weightings a program."""
    t, kv = tl.program_id(0), tl.program_id(1)
    halves = tl.cdiv(R, 2)
    b, r = tl.program_id(2) // halves, tl.program_id(2) % halves * 2
    pair = (b * tl.num_programs(1) + kv).to(tl.int64)
    n_active = tl.load(active_len_ptr + b).to(tl.int32)
    n_parked = tl.load(parked_len_ptr + b).to(tl.int32)
    _, s, live, seen = packed_rows(0, pair, S, G, BM)
    w0 = mean_weights(row_weights_ptr, b, r, R, s, live, S, G)
    w1 = mean_weights(row_weights_ptr, b, r + 1, R, s, live, S, G)

    tiles = (tl.cdiv(A, BJ), tl.cdiv(P, BJ))
    cols = locate(t, tiles, (0, 0, 0), BJ)
    limit = tl.where(t < tiles[0], n_active, tl.where(t < tiles[0] + tiles[1], n_parked, seen))
    # Rows without weight stored no scores; their share is 0.
    limit = tl.where((w0 != 0) | (w1 != 0), limit, 0)
    n = tl.arange(0, BM)
    at = (pair * BM + n)[:, None] * (A + P + S) + choose(t, tiles, (0, A, A + P)) + cols[None, :]
    x = tl.load(scores_ptr + at, mask=cols[None, :] < limit[:, None], other=float("-inf"))
    p = tl.exp2(x - tl.load(lse_ptr + pair * BM + n, mask=live, other=0.0)[:, None])
    capacity = choose(t, tiles, (A, P, S))
    mass = choose(t, tiles, (mass_active_ptr, mass_parked_ptr, mass_new_ptr))
    to = mass + (pair * R + r) * capacity + cols
    tl.store(to, tl.sum(w0[:, None] * p, 0), mask=cols < capacity)
    second = tl.where(r + 1 < R, capacity, 0)
    tl.store(to + capacity, tl.sum(w1[:, None] * p, 0), mask=cols < second)

"""Prefill: any number of new rows, in two launches: attention, then mass.

Attention is FlashAttention-2 (arXiv 2307.08691) over active, parked and new rows and leaves each
row's log-sum-exp. Mass recomputes the probabilities of those row tiles that have a weight, one
program for a tile of keys, so that every sum has one owner and a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from avl_plugins.kernels.tiles import (
    attend,
    choose,
    load_queries,
    load_rows,
    locate,
    mean_weights,
    packed_rows,
    places,
    weighted_tiles,
)


@triton.jit(do_not_specialize=["S", "A", "P", "G", "scale_bits"])
def prefill(
    q_ptr,  # [B, Hkv * G, S, D]
    k_new_ptr, v_new_ptr,  # [B, Hkv, S, D]
    k_active_ptr, v_active_ptr,  # [B, Hkv, A, D]
    active_len_ptr,  # [B] int64
    k_parked_ptr, v_parked_ptr,  # [B, Hkv, P, D]
    parked_len_ptr,  # [B] int64
    S, A, P, G, scale_bits,
    out_ptr,  # [B, Hkv * G, S, D]
    lse_ptr,  # workspace [B, Hkv, S * G] float32
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, Hkv, B); `scale_bits` holds float32(scale * log2(e))."""
    # The last rows see the most keys: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv, b = tl.program_id(1), tl.program_id(2)
    pair = (b * tl.num_programs(1) + kv).to(tl.int64)
    scale = scale_bits.to(tl.float32, bitcast=True)
    n_active = tl.load(active_len_ptr + b).to(tl.int32)
    n_parked = tl.load(parked_len_ptr + b).to(tl.int32)
    keys, values = places(pair, k_active_ptr, v_active_ptr, k_parked_ptr, v_parked_ptr,
                          k_new_ptr, v_new_ptr, A, P, S, D)  # fmt: skip
    row, s, live, seen = packed_rows(tile, pair, S, G, BM)
    q = load_queries(q_ptr, row, live, D, DP)
    m, norm, acc = attend(
        q, keys, values, n_active, n_parked, s, seen, S, 0, scale, D, DP, DP, BM, BN
    )
    d = tl.arange(0, DP)
    out = (acc / norm[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * D + d[None, :], out, mask=live[:, None] & (d[None, :] < D))
    packed = tile * BM + tl.arange(0, BM)
    tl.store(lse_ptr + pair * S * G + packed, m + tl.log2(norm), mask=live)


@triton.jit(do_not_specialize=["S", "A", "P", "R", "G", "scale_bits"])
def prefill_mass(
    q_ptr,  # [B, Hkv * G, S, D]
    k_new_ptr,  # [B, Hkv, S, D]
    k_active_ptr,  # [B, Hkv, A, D]
    active_len_ptr,  # [B] int64
    k_parked_ptr,  # [B, Hkv, P, D]
    parked_len_ptr,  # [B] int64
    row_weights_ptr,  # [B, R, S] float32
    lse_ptr,  # [B, Hkv, S * G] float32, from `prefill`
    S, A, P, R, G, scale_bits,
    mass_active_ptr, mass_parked_ptr, mass_new_ptr,  # [B, Hkv, R, A | P | S] float32
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (key tiles of A, P and S together, Hkv, B * ceil(R / 2)): two weightings a program."""
    t, kv = tl.program_id(0), tl.program_id(1)
    halves = tl.cdiv(R, 2)
    b, r = tl.program_id(2) // halves, tl.program_id(2) % halves * 2
    pair = (b * tl.num_programs(1) + kv).to(tl.int64)
    scale = scale_bits.to(tl.float32, bitcast=True)
    n_active = tl.load(active_len_ptr + b).to(tl.int32)
    n_parked = tl.load(parked_len_ptr + b).to(tl.int32)

    tiles = (tl.cdiv(A, BN), tl.cdiv(P, BN))
    cols = locate(t, tiles, (0, 0, 0), BN)
    end = choose(t, tiles, (n_active, n_parked, S))
    is_new = t >= tiles[0] + tiles[1]
    keys, _ = places(pair, k_active_ptr, k_active_ptr, k_parked_ptr, k_parked_ptr,
                     k_new_ptr, k_new_ptr, A, P, S, D)  # fmt: skip
    k = load_rows(choose(t, tiles, keys), cols, end, 0, D, DP, True)
    k_t = tl.trans(k)
    first = tl.min(cols, 0)
    # Row tiles before the first new key see none of this tile.
    begin = tl.where(is_new, first * G // BM, 0)
    stop = tl.where(first < end, tl.cdiv(S * G, BM), begin)
    acc0 = tl.zeros([BM, BN], tl.float32)
    acc1 = tl.zeros([BM, BN], tl.float32)
    for chunk in range(begin, stop, 32):
        weighted = weighted_tiles(row_weights_ptr, b, r, R, chunk, S, G, BM)
        for i in range(tl.minimum(32, stop - chunk)):
            if (weighted >> i) & 1:
                row, s, live, seen = packed_rows(chunk + i, pair, S, G, BM)
                q = load_queries(q_ptr, row, live, D, DP)
                packed = (chunk + i) * BM + tl.arange(0, BM)
                lse = tl.load(lse_ptr + pair * S * G + packed, mask=live, other=0.0)
                limit = tl.where(is_new, seen, end)
                p = tl.exp2(tl.dot(q, k_t) * scale - lse[:, None])
                p = tl.where(cols[None, :] < limit[:, None], p, 0.0)
                acc0 += mean_weights(row_weights_ptr, b, r, R, s, live, S, G)[:, None] * p
                acc1 += mean_weights(row_weights_ptr, b, r + 1, R, s, live, S, G)[:, None] * p

    capacity = choose(t, tiles, (A, P, S))
    mass = choose(t, tiles, (mass_active_ptr, mass_parked_ptr, mass_new_ptr))
    to = mass + (pair * R + r) * capacity + cols
    tl.store(to, tl.sum(acc0, 0), mask=cols < capacity)
    second = tl.where(r + 1 < R, capacity, 0)
    tl.store(to + capacity, tl.sum(acc1, 0), mask=cols < second)

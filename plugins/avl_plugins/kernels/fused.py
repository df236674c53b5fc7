"""Attention and mass in one launch without workspace: the form a TensorRT plugin can take.

Some programs attend to a tile of query rows and write `out`. Others own tiles of keys and write
their mass; these compute the log-sum-exp of every row tile that has a weight for themselves, which
costs a second pass over the keys but needs nothing from another program. Compiled with tiles of 16
rows for decode, where `W` < head_dim lets several programs share one KV head's values, and with
tiles of 64 for prefill. Both are right for any number of new rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from avl_plugins.kernels.tiles import (
    attend,
    biased,
    choose,
    load_queries,
    locate,
    mean_weights,
    packed_rows,
    places,
    rows_stand,
    score,
    weighted_tiles,
)


@triton.jit(do_not_specialize=["S", "A", "P", "R", "G", "scale_bits", "owners"])
def fused(
    q_ptr,  # [B, Hkv * G, S, D]
    k_new_ptr, v_new_ptr,  # [B, Hkv, S, D]
    k_active_ptr, v_active_ptr,  # [B, Hkv, A, D]
    active_len_ptr,  # [B] int64
    k_parked_ptr, v_parked_ptr,  # [B, Hkv, P, D]
    parked_len_ptr,  # [B] int64
    row_weights_ptr,  # [B, R, S] float32
    S, A, P, R, G, scale_bits, owners,
    out_ptr,  # [B, Hkv * G, S, D]
    mass_active_ptr, mass_parked_ptr, mass_new_ptr,  # [B, Hkv, R, A | P | S] float32
    D: tl.constexpr, DP: tl.constexpr, W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (owners * ceil(R / 2) + row tiles * ceil(D / W), Hkv, B).

    `scale_bits` holds float32(scale * log2(e)); `owners` programs share the mass of a KV head and
    two weightings.
    """
    _program(q_ptr, k_new_ptr, v_new_ptr, k_active_ptr, v_active_ptr, active_len_ptr,
             k_parked_ptr, v_parked_ptr, parked_len_ptr, row_weights_ptr, (q_ptr,),
             S, A, P, R, G, scale_bits, owners,
             out_ptr, mass_active_ptr, mass_parked_ptr, mass_new_ptr,
             D, DP, W, BM, BN, False)  # fmt: skip


@triton.jit(do_not_specialize=["S", "A", "P", "R", "G", "scale_bits", "owners", "X", "M", "F"])
def restored(
    q_ptr, k_new_ptr, v_new_ptr, k_active_ptr, v_active_ptr, active_len_ptr,
    k_parked_ptr, v_parked_ptr, parked_len_ptr, row_weights_ptr,
    nearness_ptr,  # [X, M] float32
    row_standing_ptr,  # [B, S, X + 1] int64
    active_standing_ptr, parked_standing_ptr,  # [B, F | 1, A | P, X + 1] int64
    S, A, P, R, G, scale_bits, owners, X, M, F,
    out_ptr, mass_active_ptr, mass_parked_ptr, mass_new_ptr,
    D: tl.constexpr, DP: tl.constexpr, W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """`fused` with the bias that RESTORE makes of where rows stand; F is Hkv or 1."""
    b, kv = tl.program_id(2).to(tl.int64), tl.program_id(1)
    active = active_standing_ptr + (b * F + tl.minimum(kv, F - 1)) * A * (X + 1)
    stand = (nearness_ptr, row_standing_ptr + b * S * (X + 1), active,
             parked_standing_ptr + b * P * (X + 1), X, M)  # fmt: skip
    _program(q_ptr, k_new_ptr, v_new_ptr, k_active_ptr, v_active_ptr, active_len_ptr,
             k_parked_ptr, v_parked_ptr, parked_len_ptr, row_weights_ptr, stand,
             S, A, P, R, G, scale_bits, owners,
             out_ptr, mass_active_ptr, mass_parked_ptr, mass_new_ptr,
             D, DP, W, BM, BN, True)  # fmt: skip


@triton.jit
def _program(
    q_ptr, k_new_ptr, v_new_ptr, k_active_ptr, v_active_ptr, active_len_ptr,
    k_parked_ptr, v_parked_ptr, parked_len_ptr, row_weights_ptr,
    stand,  # of `biased`
    S, A, P, R, G, scale_bits, owners,
    out_ptr, mass_active_ptr, mass_parked_ptr, mass_new_ptr,
    D: tl.constexpr, DP: tl.constexpr, W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    x, kv, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = (b * tl.num_programs(1) + kv).to(tl.int64)
    scale = scale_bits.to(tl.float32, bitcast=True)
    n_active = tl.load(active_len_ptr + b).to(tl.int32)
    n_parked = tl.load(parked_len_ptr + b).to(tl.int32)
    keys, values = places(pair, k_active_ptr, v_active_ptr, k_parked_ptr, v_parked_ptr,
                          k_new_ptr, v_new_ptr, A, P, S, D)  # fmt: skip
    owning = owners * tl.cdiv(R, 2)
    if x >= owning:
        SLICES: tl.constexpr = (D + W - 1) // W
        column = (x - owning) % SLICES * W
        tile = tl.cdiv(S * G, BM) - 1 - (x - owning) // SLICES
        row, s, live, seen = packed_rows(tile, pair, S, G, BM)
        q = load_queries(q_ptr, row, live, D, DP)
        _, norm, acc = attend(q, keys, values, stand, n_active, n_parked, s, seen, S, column, scale,
                           D, DP, W, BM, BN, BIASED)  # fmt: skip
        d = column + tl.arange(0, W)
        out = (acc / norm[:, None]).to(out_ptr.dtype.element_ty)
        mask = live[:, None] & (d[None, :] < D)
        tl.store(out_ptr + row[:, None] * D + d[None, :], out, mask=mask)
    else:
        r = x // owners * 2
        masses = (mass_active_ptr + (pair * R + r) * A, mass_parked_ptr + (pair * R + r) * P,
                  mass_new_ptr + (pair * R + r) * S)  # fmt: skip
        _own_mass(q_ptr, keys, stand, row_weights_ptr, masses, (n_active, n_parked, S), (A, P, S),
                  b, pair, r, R, G, x % owners, owners, scale, D, DP, BM, BN, BIASED)  # fmt: skip


@triton.jit
def _own_mass(
    q_ptr, keys, stand, row_weights_ptr,
    masses,  # pointers to row r of the mass of each place; row r + 1 follows, if there is one
    used, capacities,  # (active, parked, new)
    b, pair, r, R, G, owner, owners, scale,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Mass of two weightings on the key tiles of one owner: zeros first, then a row tile a time."""
    S = used[2]
    second = tl.where(r + 1 < R, 1, 0)
    tiles = (tl.cdiv(capacities[0], BN), tl.cdiv(capacities[1], BN), tl.cdiv(S, BN))
    share = tl.cdiv(tiles[0] + tiles[1] + tiles[2], owners)
    begin = owner * share
    stop = tl.minimum(begin + share, tiles[0] + tiles[1] + tiles[2])
    for t in range(begin, stop):
        cols = locate(t, tiles, (0, 0, 0), BN)
        capacity = choose(t, tiles, capacities)
        to = choose(t, tiles, masses) + cols
        tl.store(to, tl.zeros([BN], tl.float32), mask=cols < capacity)
        tl.store(to + capacity, tl.zeros([BN], tl.float32), mask=cols < capacity * second)
    row_tiles = tl.cdiv(S * G, BM)
    for chunk in range(0, row_tiles, 32):
        weighted = weighted_tiles(row_weights_ptr, b, r, R, chunk, S, G, BM)
        for i in range(tl.minimum(32, row_tiles - chunk)):
            if (weighted >> i) & 1:
                row, s, live, seen = packed_rows(chunk + i, pair, S, G, BM)
                q = load_queries(q_ptr, row, live, D, DP)
                w0 = mean_weights(row_weights_ptr, b, r, R, s, live, S, G)[:, None]
                w1 = mean_weights(row_weights_ptr, b, r + 1, R, s, live, S, G)[:, None]
                stands = rows_stand(stand, s) if BIASED else False
                lse = _log_sum_exp(
                    q, keys, stand, stands, used, s, seen, scale, D, DP, BM, BN, BIASED
                )
                tl.debug_barrier()  # a mass is read by other threads than wrote it
                for t in range(begin, stop):
                    cols = locate(t, tiles, (0, 0, 0), BN)
                    end = choose(t, tiles, used)
                    limit = tl.where(t < tiles[0] + tiles[1], end, seen)
                    y = score(q, choose(t, tiles, keys), cols, limit, end, scale, D, DP, True)
                    if BIASED:
                        y = biased(y, stand, stands, t, tiles, s, cols, end, True)
                    p = tl.exp2(y - lse[:, None])
                    capacity = choose(t, tiles, capacities)
                    to = choose(t, tiles, masses) + cols
                    mask0, mask1 = cols < end, cols < end * second
                    before = tl.load(to, mask=mask0, other=0.0)
                    tl.store(to, before + tl.sum(w0 * p, 0), mask=mask0)
                    before = tl.load(to + capacity, mask=mask1, other=0.0)
                    tl.store(to + capacity, before + tl.sum(w1 * p, 0), mask=mask1)


@triton.jit
def _log_sum_exp(q, keys, stand, stands, used, s, seen, scale, D: tl.constexpr, DP: tl.constexpr,
                 BM: tl.constexpr, BN: tl.constexpr, BIASED: tl.constexpr):  # fmt: skip
    """Log-sum-exp [BM] of the scores of a row tile, in the log2 domain."""
    tiles = (tl.cdiv(used[0], BN), tl.cdiv(used[1], BN), tl.cdiv(used[2], BN))
    m = tl.full([BM], float("-inf"), tl.float32)
    norm = tl.zeros([BM], tl.float32)
    for t in range(tiles[0] + tiles[1] + tiles[2]):
        rows = locate(t, tiles, (0, 0, 0), BN)
        end = choose(t, tiles, used)
        limit = tl.where(t < tiles[0] + tiles[1], end, seen)
        x = score(q, choose(t, tiles, keys), rows, limit, end, scale, D, DP, True)
        if BIASED:
            x = biased(x, stand, stands, t, tiles, s, rows, end, True)
        m_new = tl.maximum(m, tl.max(x, 1))
        norm = norm * tl.exp2(m - m_new) + tl.sum(tl.exp2(x - m_new[:, None]), 1)
        m = m_new
    return m + tl.log2(norm)

"""Update: moves cache rows by lists of addresses.

`update` works in place, on all layers in one launch: appends, partitions, exchanges and evictions.
A program owns a few columns of all rows of one KV head and reads every source row before it writes
any destination, so lists may overlap in any way. `update_copy` writes new arrays instead, which is
the form a TensorRT plugin can take.

Rows are moved as 16-bit words, whatever their type. Addresses: `schema.SPLIT_CACHE_UPDATE`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _row_pointers(rows, pair, A, P, S, D, active, parked, new):
    """Pointers to the rows at addresses `rows`; negative addresses give some valid row."""
    rows = tl.maximum(rows, 0)
    in_active, in_cache = rows < A, rows < A + P
    place = tl.where(in_active, active, tl.where(in_cache, parked, new))
    first = tl.where(in_active, pair * A, tl.where(in_cache, pair * P - A, pair * S - A - P))
    return place + (first + rows) * D


@triton.jit(do_not_specialize=["S", "M", "D"])
def update(
    table_ptr,  # [L, 8] int64: addresses of k_active, v_active, k_parked, v_parked, k_new, v_new,
    #             then the layer's A and P; new rows are [B, Hkv, S, D]
    source_ptr, destination_ptr,  # [L, B, Hkv, M] int64, M <= MP
    S, M, D,
    MP: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Grid (2 * D / W, B * Hkv, L): even programs move keys, odd ones values, W columns each."""
    x, pair, layer = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    entry = table_ptr + layer * 8
    kind = x % 2
    word = tl.pointer_type(tl.int16)
    active = tl.load(entry + kind).to(word)
    parked = tl.load(entry + 2 + kind).to(word)
    new = tl.load(entry + 4 + kind).to(word)
    A, P = tl.load(entry + 6), tl.load(entry + 7)

    move = tl.arange(0, MP)
    at = (layer * tl.num_programs(1) + pair) * M + move
    source = tl.load(source_ptr + at, mask=move < M, other=0)
    destination = tl.load(destination_ptr + at, mask=move < M, other=-1)
    columns = (x // 2 * W + tl.arange(0, W))[None, :]
    moved = (destination >= 0)[:, None]
    rows = _row_pointers(source, pair, A, P, S, D, active, parked, new)[:, None] + columns
    words = tl.load(tl.multiple_of(rows, (1, 16)), mask=moved, other=0)
    # Every read of every warp comes before any write.
    tl.debug_barrier()
    rows = _row_pointers(destination, pair, A, P, S, D, active, parked, new)[:, None] + columns
    tl.store(tl.multiple_of(rows, (1, 16)), words, mask=moved)


@triton.jit(do_not_specialize=["A", "P", "S", "M", "D"])
def update_copy(
    k_active_ptr, v_active_ptr, k_parked_ptr, v_parked_ptr,  # [B, Hkv, A | P, D]
    k_new_ptr, v_new_ptr,  # [B, Hkv, S, D]
    source_ptr, destination_ptr,  # [B, Hkv, M] int64
    A, P, S, M, D,
    k_active_out_ptr, v_active_out_ptr, k_parked_out_ptr, v_parked_out_ptr,
    BN: tl.constexpr, BJ: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of BN rows of A and P, Hkv, B): every row of the outputs finds its source."""
    t, pair = tl.program_id(0), tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    pair = pair.to(tl.int64)
    tiles = tl.cdiv(A, BN)
    in_active = t < tiles
    row = tl.where(in_active, t, t - tiles) * BN + tl.arange(0, BN)
    capacity = tl.where(in_active, A, P)
    address = row + tl.where(in_active, 0, A)
    origin = address.to(tl.int64)
    for j0 in range(0, M, BJ):
        move = j0 + tl.arange(0, BJ)
        source = tl.load(source_ptr + pair * M + move, mask=move < M, other=0)
        destination = tl.load(destination_ptr + pair * M + move, mask=move < M, other=-1)
        found = destination[None, :] == address[:, None]
        # A destination occurs once at most: the sum is the one source, or none.
        from_move = tl.sum(tl.where(found, source[None, :] + 1, 0), 1)
        origin = tl.where(from_move > 0, from_move - 1, origin)

    live = (row < capacity)[:, None]
    k_rows = _row_pointers(origin, pair, A, P, S, D, k_active_ptr, k_parked_ptr, k_new_ptr)
    v_rows = _row_pointers(origin, pair, A, P, S, D, v_active_ptr, v_parked_ptr, v_new_ptr)
    to = (pair * capacity + row)[:, None] * D
    k_to = tl.where(in_active, k_active_out_ptr, k_parked_out_ptr) + to
    v_to = tl.where(in_active, v_active_out_ptr, v_parked_out_ptr) + to
    for c in range(0, D, W):
        column = c + tl.arange(0, W)[None, :]
        k = tl.load(tl.multiple_of(k_rows[:, None] + column, (1, 16)), mask=live, other=0)
        v = tl.load(tl.multiple_of(v_rows[:, None] + column, (1, 16)), mask=live, other=0)
        tl.store(tl.multiple_of(k_to + column, (1, 16)), k, mask=live)
        tl.store(tl.multiple_of(v_to + column, (1, 16)), v, mask=live)

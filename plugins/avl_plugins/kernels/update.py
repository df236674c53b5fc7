"""Update: moves cache rows by lists of addresses.

`update` works in place, on all layers in one launch: appends, partitions, exchanges and evictions.
A program owns a few columns of all rows of one KV head and reads every source row before it writes
any destination, so lists may overlap in any way. Rows are moved as 16-bit words, whatever their
type. Addresses: `naive.move_rows`.
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

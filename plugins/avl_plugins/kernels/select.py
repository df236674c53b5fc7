"""Select: policies' choices on the device, so that decode never waits for the host.

`select_core` ranks the secondary image rows of a refresh and gives the exchange between active and
parked rows (A-VL, arXiv 2409.14846). `select_text` adds a step's attention to what each text row
has gathered and gives the moves that evict what is over the budget (H2O, arXiv 2306.14048). Both
handle all layers in one launch, keep the book-keeping that they rank by up to date, and write lists
of moves for `update.update`. They choose exactly what `policies.Split` and `policies.TextBudget`
choose, ties included.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _threshold(value, among, count):
    """The count-th largest of the non-negative int32 `value` [NP] where `among`.

    For a count of 0 it is 0x7FFFFFFF, which no score's bits and no position reach.
    """
    found = 0
    for bit in range(31):
        candidate = found | (1 << (30 - bit))
        enough = tl.sum((among & (value >= candidate)).to(tl.int32), 0) >= count
        found = tl.where(enough, candidate, found)
    return found


@triton.jit
def _best(score, position, among, count):
    """Where the `count` best of `among` are: the highest scores, the lowest positions of equals.

    `count` is at most how many there are.
    """
    value = score.to(tl.int32, bitcast=True)  # the order of non-negative floats is their bits'
    least = _threshold(value, among, count)
    above = among & (value > least)
    equal = among & (value == least)
    missing = count - tl.sum(above.to(tl.int32), 0)
    last = 0x7FFFFFFF - _threshold(0x7FFFFFFF - position, equal, missing)
    return above | (equal & (position <= last))


@triton.jit
def _rank(flag):
    """How many flags of [NP] are set before each."""
    return tl.cumsum(flag.to(tl.int32), 0) - 1


@triton.jit(do_not_specialize=["R", "Hkv", "M"])
def select_core(
    table_ptr,  # [L, 8] int64: addresses of mass_active [B, Hkv, R, A] and mass_parked
    #             [B, Hkv, R, P] float32, positions [B, Hkv, A], parked_positions [B, P],
    #             core rows [B] and parked rows [B] int64; then A and P
    R, Hkv, M,
    source_ptr, destination_ptr,  # [L, B, Hkv, M] int64, M at least twice the rows exchanged
    NP: tl.constexpr,
):  # fmt: skip
    """Grid (B, L); core and parked rows together are at most NP.

    Active image rows are the first core rows, in the same slots for every KV head. Exchange i of a
    list is moves 2 i (parked to active) and 2 i + 1; moves that are not needed are to nowhere.
    """
    b, layer = tl.program_id(0), tl.program_id(1)
    entry = table_ptr + layer * 8
    mass_active = tl.load(entry).to(tl.pointer_type(tl.float32))
    mass_parked = tl.load(entry + 1).to(tl.pointer_type(tl.float32))
    positions = tl.load(entry + 2).to(tl.pointer_type(tl.int64))
    parked_positions = tl.load(entry + 3).to(tl.pointer_type(tl.int64))
    core = tl.load(tl.load(entry + 4).to(tl.pointer_type(tl.int64)) + b).to(tl.int32)
    parked = tl.load(tl.load(entry + 5).to(tl.pointer_type(tl.int64)) + b).to(tl.int32)
    A, P = tl.load(entry + 6).to(tl.int32), tl.load(entry + 7).to(tl.int32)

    n = tl.arange(0, NP)
    active = n < core
    apart = (n >= core) & (n < core + parked)
    score = tl.zeros([NP], tl.float32)
    for h in range(Hkv):
        row = (b * Hkv + h).to(tl.int64) * R
        score += tl.load(mass_active + row * A + n, mask=active, other=0.0)
        score += tl.load(mass_parked + row * P + n - core, mask=apart, other=0.0)
    position = tl.load(positions + b.to(tl.int64) * Hkv * A + n, mask=active, other=0)
    position += tl.load(parked_positions + b.to(tl.int64) * P + n - core, mask=apart, other=0)
    position = position.to(tl.int32)
    chosen = _best(score, position, active | apart, core)

    leaving = active & (chosen == 0)
    entering = apart & chosen
    leave_rank, enter_rank = _rank(leaving), _rank(entering)
    exchanged = tl.sum(leaving.to(tl.int32), 0)
    slot, place = n.to(tl.int64), (n - core + A).to(tl.int64)
    for h in range(Hkv):
        to = (layer * tl.num_programs(0) + b).to(tl.int64) * Hkv * M + h * M
        tl.store(destination_ptr + to + 2 * leave_rank, slot, mask=leaving)
        tl.store(source_ptr + to + 2 * leave_rank + 1, slot, mask=leaving)
        tl.store(source_ptr + to + 2 * enter_rank, place, mask=entering)
        tl.store(destination_ptr + to + 2 * enter_rank + 1, place, mask=entering)
        for m0 in range(2 * exchanged, M, NP):
            nowhere = m0 + n
            tl.store(source_ptr + to + nowhere, tl.zeros([NP], tl.int64), mask=nowhere < M)
            tl.store(destination_ptr + to + nowhere, tl.full([NP], -1, tl.int64), mask=nowhere < M)
    # The lists are read back to pair rows up, by other threads than wrote them.
    tl.debug_barrier()
    to = (layer * tl.num_programs(0) + b).to(tl.int64) * Hkv * M
    pair = n < exchanged
    slot = tl.load(destination_ptr + to + 2 * n, mask=pair, other=0)
    place = tl.load(source_ptr + to + 2 * n, mask=pair, other=0) - A
    to_parked = tl.load(positions + b.to(tl.int64) * Hkv * A + slot, mask=pair, other=0)
    to_active = tl.load(parked_positions + b.to(tl.int64) * P + place, mask=pair, other=0)
    tl.debug_barrier()
    tl.store(parked_positions + b.to(tl.int64) * P + place, to_parked, mask=pair)
    for h in range(Hkv):
        tl.store(positions + (b * Hkv + h).to(tl.int64) * A + slot, to_active, mask=pair)


@triton.jit(do_not_specialize=["R", "S", "M", "T"])
def select_text(
    table_ptr,  # [L, 8] int64: addresses of mass_active [B, Hkv, R, A_step] and mass_new
    #             [B, Hkv, R, S] float32 of the step, positions [B, Hkv, A] int64, gathered
    #             [B, Hkv, A] float32 and active_len [B] int64, new rows included; then A, A_step
    image_mask_ptr,  # [B, T] int8, 1 where a token is an image's
    first_image_ptr,  # [B] int32, position of the first image token; text before it stays
    budget_ptr,  # [B, 2] int32: text rows that may stay, and how many of them for being recent
    R, S, M, T,
    source_ptr, destination_ptr,  # [L, B, Hkv, M] int64, M at least the rows evicted
    remaining_ptr,  # [L, B] int64, active rows after the moves
    NP: tl.constexpr,
):  # fmt: skip
    """Grid (Hkv, B, L); active_len is at most NP. A mass's weighting 1 is what text rows gather."""
    h, b, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    entry = table_ptr + layer * 8
    A, step_rows = tl.load(entry + 5).to(tl.int32), tl.load(entry + 6).to(tl.int32)
    head = (b * tl.num_programs(0) + h).to(tl.int64)
    mass_active = tl.load(entry).to(tl.pointer_type(tl.float32)) + (head * R + 1) * step_rows
    mass_new = tl.load(entry + 1).to(tl.pointer_type(tl.float32)) + (head * R + 1) * S
    positions = tl.load(entry + 2).to(tl.pointer_type(tl.int64)) + head * A
    gathered = tl.load(entry + 3).to(tl.pointer_type(tl.float32)) + head * A
    length = tl.load(tl.load(entry + 4).to(tl.pointer_type(tl.int64)) + b).to(tl.int32)

    n = tl.arange(0, NP)
    alive = n < length
    old = length - S
    mass = tl.load(gathered + n, mask=alive, other=0.0)
    mass += tl.load(mass_active + n, mask=n < old, other=0.0)
    mass += tl.load(mass_new + n - old, mask=(n >= old) & alive, other=0.0)
    position = tl.load(positions + n, mask=alive, other=0)
    image = tl.load(image_mask_ptr + b.to(tl.int64) * T + position, mask=alive, other=1)
    position = position.to(tl.int32)
    text = alive & (image == 0) & (position > tl.load(first_image_ptr + b))
    count = tl.sum(text.to(tl.int32), 0)
    budget, recent = tl.load(budget_ptr + 2 * b), tl.load(budget_ptr + 2 * b + 1)
    budget = tl.minimum(budget, count)
    recent = tl.minimum(recent, budget)
    newest = text & (position >= _threshold(position, text, recent))
    heavy = _best(mass, position, text & (newest == 0), budget - recent)
    kept = alive & ((text == 0) | newest | heavy)

    remaining = length - (count - budget)
    hole = (n < remaining) & (kept == 0)
    mover = (n >= remaining) & kept
    to = (layer * tl.num_programs(1) + b).to(tl.int64) * tl.num_programs(0) * M + h * M
    moved = tl.sum(hole.to(tl.int32), 0)
    tl.store(destination_ptr + to + _rank(hole), n.to(tl.int64), mask=hole)
    tl.store(source_ptr + to + _rank(mover), n.to(tl.int64), mask=mover)
    for m0 in range(moved, M, NP):
        nowhere = m0 + n
        tl.store(source_ptr + to + nowhere, tl.zeros([NP], tl.int64), mask=nowhere < M)
        tl.store(destination_ptr + to + nowhere, tl.full([NP], -1, tl.int64), mask=nowhere < M)
    tl.store(gathered + n, mass, mask=alive)
    if h == 0:
        at = remaining_ptr + layer * tl.num_programs(1) + b
        tl.store(at, remaining.to(tl.int64))
    # The lists and masses are read back by other threads than wrote them.
    tl.debug_barrier()
    pair = n < moved
    source = tl.load(source_ptr + to + n, mask=pair, other=0)
    destination = tl.load(destination_ptr + to + n, mask=pair, other=0)
    tl.store(positions + destination, tl.load(positions + source, mask=pair, other=0), mask=pair)
    tl.store(gathered + destination, tl.load(gathered + source, mask=pair, other=0.0), mask=pair)

"""Small kernels that are right or wrong in ways which only a GPU would show."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def within(x_ptr, out_ptr, counter_ptr, N: tl.constexpr, GOOD: tl.constexpr):
    n = tl.arange(0, N)
    mask = n < N - 1 if GOOD else n < N
    if tl.program_id(0) == 0:
        tl.store(out_ptr + n, tl.load(x_ptr + n, mask=mask, other=0.0), mask=mask)


@triton.jit
def apart(x_ptr, out_ptr, counter_ptr, N: tl.constexpr, GOOD: tl.constexpr):
    program = tl.program_id(0)
    tl.store(out_ptr + (program if GOOD else 0), 1.0)


@triton.jit
def unread(x_ptr, out_ptr, counter_ptr, N: tl.constexpr, GOOD: tl.constexpr):
    program = tl.program_id(0)
    seen = tl.load(out_ptr + (program if GOOD else 0))
    tl.store(out_ptr + program, seen + 1)


@triton.jit
def shifted(x_ptr, out_ptr, counter_ptr, N: tl.constexpr, GOOD: tl.constexpr):
    if tl.program_id(0) == 0:
        n = tl.arange(0, N // 2)
        value = tl.load(out_ptr + n)
        if GOOD:
            tl.debug_barrier()
        tl.store(out_ptr + n + 1, value)


@triton.jit
def reversed_lanes(x_ptr, out_ptr, counter_ptr, N: tl.constexpr, GOOD: tl.constexpr):
    if tl.program_id(0) == 0:
        n = tl.arange(0, N // 2)
        tl.store(out_ptr + n, tl.load(x_ptr + n))
        back = n if GOOD else N // 2 - 1 - n
        tl.store(x_ptr + n, tl.load(out_ptr + back))


@triton.jit
def counted(x_ptr, out_ptr, counter_ptr, N: tl.constexpr, GOOD: tl.constexpr):
    program = tl.program_id(0)
    tl.store(out_ptr + program, 1.0)
    tl.debug_barrier()
    if GOOD:
        before = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    else:
        before = tl.atomic_add(counter_ptr, 1, sem="relaxed", scope="gpu")
    if before == tl.num_programs(0) - 1:
        tl.store(out_ptr, tl.load(out_ptr + 1))
        tl.store(counter_ptr, 0)


@triton.jit
def released(x_ptr, out_ptr, counter_ptr, N: tl.constexpr, GOOD: tl.constexpr):
    program = tl.program_id(0)
    tl.store(out_ptr + program, 1.0)
    if GOOD:
        tl.debug_barrier()
    if tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1:
        tl.store(counter_ptr, tl.load(out_ptr + 1 - program).to(tl.int32))

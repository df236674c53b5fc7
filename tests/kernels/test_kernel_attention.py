"""The attention kernels, interpreted on the CPU, against float64.

A covering set: every head_dim, type and form, groups of 1 to 32, ragged lengths with 0 and whole
tiles, one to three owners, tile sizes, one to three weightings. `scripts/kernel_sweep.py` runs many
more.
"""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from kernel_cases import Attention, Errors
from kernels import interpreted

OUT, MASS = 2.0, 1e-6  # times pure rounding; absolute, for weights of sum 1

CASES = [
    # dtype, head_dim, kv_heads, group, new, active, parked, active_len, parked_len
    Attention("fused_decode", "float16", 128, 2, 1, 1, 200, 70, (200, 61), (0, 70)),
    Attention("fused_decode", "bfloat16", 80, 1, 7, 1, 64, 33, (64,), (32,), 3, owners=3),
    Attention("fused_decode", "float16", 64, 1, 4, 9, 100, 50, (64,), (32,), owners=2),
    Attention("fused_decode_sliced", "bfloat16", 128, 1, 8, 1, 96, 40, (96, 1), (0, 39)),
    # Full to the last row of the caches, with several row tiles of fewer columns than are padded.
    Attention("fused_decode_sliced", "float16", 96, 1, 2, 9, 64, 32, (64,), (32,), weighted=()),
    Attention("fused_decode_sliced", "bfloat16", 80, 1, 4, 9, 32, 5, (32,), (4,), weighted=(8,)),
    Attention("fused_decode_sliced", "float16", 64, 1, 1, 20, 70, 9, (64,), (8,), owners=2),
    Attention("fused_prefill", "bfloat16", 128, 1, 4, 33, 70, 40, (64, 70), (0, 40)),
    Attention("fused_prefill", "float16", 96, 1, 2, 50, 70, 1, (70,), (0,), weighted=(3, 49)),
    Attention("fused_prefill", "bfloat16", 64, 1, 1, 100, 30, 1, (0,), (0,), 1, owners=2),
    # More row tiles than one look at the weights covers.
    Attention("fused_decode", "float16", 64, 1, 1, 540, 1, 1, (0,), (0,), weighted=(500, 539)),
    Attention("fused_decode", "bfloat16", 96, 1, 16, 1, 40, 50, (39,), (50,), 1),
    Attention("fused_decode", "float16", 80, 1, 7, 1, 100, 1, (33, 0), (0, 1), 3),
    Attention("fused_decode", "float16", 64, 1, 2, 1, 70, 9, (70,), (8,), constants={"BN": 16}),
    Attention("fused_decode", "bfloat16", 64, 1, 1, 1, 40, 3, tuple(range(0, 40, 5)), (3, 0) * 4),
    Attention("fused_decode_sliced", "float16", 128, 1, 4, 1, 10, 5, (0, 3), (0, 5)),
    Attention("fused_prefill", "float16", 128, 1, 1, 130, 40, 35, (40, 0), (35, 0)),
    Attention("fused_prefill", "float16", 80, 1, 7, 20, 70, 40, (1, 69), (7, 39)),
    Attention("fused_prefill", "bfloat16", 64, 1, 3, 45, 100, 30, (33, 100), (0, 30), 3),
    Attention("fused_prefill", "float16", 64, 1, 2, 70, 64, 64, (64,), (64,), weighted=(69,)),
    Attention("fused_prefill", "float16", 64, 1, 1, 90, 50, 8, (50,), (3,), constants={"BM": 32}),
    Attention("fused_prefill", "float16", 64, 1, 32, 1, 50, 8, (50,), (3,)),
]
RESTORED = [
    Attention("restored_decode", "float16", 128, 2, 2, 1, 70, 9, (70, 3), (9, 0), unlike=True),
    Attention("restored_decode", "bfloat16", 64, 1, 3, 2, 65, 5, (65,), (4,), axes=3),
    Attention("restored_decode_sliced", "bfloat16", 80, 2, 1, 1, 40, 33, (33,), (33,), axes=3),
    Attention("restored_decode_sliced", "float16", 96, 1, 2, 3, 33, 5, (0,), (4,), owners=2),
    Attention("restored_prefill", "float16", 64, 1, 2, 40, 70, 9, (66,), (8,), axes=2),
    Attention("restored_prefill", "bfloat16", 80, 2, 1, 20, 33, 5, (33,), (5,), unlike=True),
]
CASES += RESTORED


@pytest.fixture(scope="module")
def errors(interpreting: ProcessPoolExecutor) -> dict[Attention, Future[Errors]]:
    """All cases at work on all processes, every third in an order of programs of its own."""
    return {
        id(case): interpreting.submit(interpreted.attention, case, i if i % 3 else None)
        for i, case in enumerate(CASES)
    }


def name(case: Attention) -> str:
    return f"{case.form}-{case.dtype}-{case.head_dim}-g{case.group}-s{case.new}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_close_to_float64(case: Attention, errors: dict[int, Future[Errors]]) -> None:
    found = errors[id(case)].result()
    assert found.out <= OUT
    assert found.mass <= MASS


def test_every_form_type_and_head_dim_is_covered() -> None:
    for form in {case.form for case in CASES}:
        cases = [case for case in CASES if case.form == form]
        assert {case.dtype for case in cases} == {"float16", "bfloat16"}
    for dim in (64, 80, 96, 128):
        assert sum(case.head_dim == dim for case in CASES) >= 3


def test_the_order_of_programs_changes_no_bit(interpreting: ProcessPoolExecutor) -> None:
    case = CASES[2]
    orders = (None, 11, 12)
    runs = [interpreting.submit(interpreted.outputs_of, case, order) for order in orders]
    first, *others = (run.result() for run in runs)
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_wrong_scale_is_noticed(interpreting: ProcessPoolExecutor) -> None:
    """The tolerances can fail: 0.1 % on the scale is far outside them."""
    found = interpreting.submit(interpreted.attention, CASES[0], None, 1.001).result()
    assert found.mass > 10 * MASS


def test_the_bias_is_noticed(interpreting: ProcessPoolExecutor) -> None:
    """The same inputs without it are far outside of the tolerances."""
    case = RESTORED[1]
    plain = replace(case, form=case.form.replace("restored", "fused"))
    found = interpreting.submit(interpreted.without_bias, plain, case).result()
    assert found.mass > 1000 * MASS

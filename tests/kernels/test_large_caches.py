"""Caches of more than 2^31 elements: offsets must be in 64 bits.

The memory is reserved and hardly touched: what is not written costs nothing.
"""

from __future__ import annotations

import math
import mmap
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

from kernel_cases import Attention, Errors

ROWS, WIDTH = 1 << 24, 128  # the second KV head begins at element 2^31
NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which the module mmap does not always name


def sparse(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros."""
    size = math.prod(shape) * dtype.itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype).view(shape)


def attention_far_apart(form: str) -> Errors:
    """Errors of a small case whose active rows lie in caches of many more."""
    from avl_plugins.kernels.catalog import scale_bits, variant_of
    from kernel_cases import attention_errors, triton_launch
    from kernels.interpreted import checked

    case = Attention(form, "float16", WIDTH, 2, 1, 3, 40, 5, (40,), (4,), 1, weighted=())
    inputs = case.inputs()
    values = dict(inputs)
    for kind in "kv":
        values[f"{kind}_active"] = sparse(1, 2, ROWS, WIDTH, dtype=torch.float16)
        values[f"{kind}_active"][:, :, :40] = inputs[f"{kind}_active"]
    values["out"] = torch.full_like(inputs["q"], torch.nan)
    values |= {f"mass_{place}": torch.zeros(1) for place in ("active", "parked", "new")}
    # No weightings: a program would fill the mass of every row there is room for.
    sizes = {"B": 1, "Hkv": 2, "S": 3, "A": ROWS, "P": 5, "R": 0, "G": 1, "owners": 1}
    sizes["scale_bits"] = scale_bits(WIDTH**-0.5)
    with checked(None):
        triton_launch(variant_of(form, "float16", WIDTH), values | sizes)
    nothing = [torch.zeros(1, 2, 1, rows) for rows in (40, 5, 3)]
    return attention_errors(case, inputs, [values["out"], *nothing])


def update_far_apart() -> bool:
    """Whether rows at the ends of large caches go where they should."""
    from kernel_cases import triton_launch
    from kernel_moves import PLACES, run_update
    from kernels.interpreted import checked

    layer = {
        name: sparse(1, 2, 3 if "new" in name else ROWS, WIDTH, dtype=torch.int16)
        for name in PLACES
    }
    moves = [(ROWS - 1, 0), (0, 2 * ROWS - 1), (2 * ROWS - 1, ROWS - 1), (2 * ROWS + 2, 7)]
    places = [("active", ROWS - 1), ("active", 0), ("parked", ROWS - 1), ("new", 2)]
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.integers(1, 2**15, (2, 2, len(moves), WIDTH)).astype(np.int16))
    for x, kind in enumerate("kv"):
        for i, (place, row) in enumerate(places):
            layer[f"{kind}_{place}"][0, :, row] = rows[x, :, i]
    lists = torch.tensor(moves).T[:, None, None, None].repeat(1, 1, 1, 2, 1)
    with checked(None):
        run_update(triton_launch, [layer], lists[0].contiguous(), lists[1].contiguous())
    targets = [("active", 0), ("parked", ROWS - 1), ("active", ROWS - 1), ("active", 7)]
    return all(
        torch.equal(layer[f"{kind}_{place}"][0, :, row], rows[x, :, i])
        for x, kind in enumerate("kv")
        for i, (place, row) in enumerate(targets)
    )


@pytest.mark.parametrize("form", ["fused_decode", "fused_prefill"])
def test_attention(form: str, interpreting: ProcessPoolExecutor) -> None:
    errors = interpreting.submit(attention_far_apart, form).result()
    assert errors.out <= 2


def test_update(interpreting: ProcessPoolExecutor) -> None:
    assert interpreting.submit(update_far_apart).result()

"""The watch over interpreted memory finds what it is for, and nothing else."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest


def findings(kernel: str, good: bool, order: int | None) -> set[str]:
    import torch

    from interpreted_memory import watched
    from interpreter import shuffled_programs
    from kernels import racing

    # The last lane of `within` is one past the end of x.
    x, out, counter = torch.zeros(7), torch.zeros(8), torch.zeros(1, dtype=torch.int32)
    with shuffled_programs(order), watched() as wrong:
        getattr(racing, kernel)[(2,)](x, out, counter, N=8, GOOD=good)
    return set(wrong)


@pytest.mark.parametrize("order", [None, 3])
@pytest.mark.parametrize(
    ("kernel", "wrong"),
    [
        ("within", "a load is outside every tensor"),
        ("apart", "two programs touch what one of them writes"),
        ("unread", "two programs touch what one of them writes"),
        ("shifted", "a store follows a load without a barrier"),
        ("reversed_lanes", "a load follows a store without a barrier"),
        ("counted", "two programs touch what one of them writes"),
        ("released", "a program touches what another wrote and did not release to it"),
    ],
)
def test_findings(
    kernel: str, wrong: str, order: int | None, interpreting: ProcessPoolExecutor
) -> None:
    assert wrong in interpreting.submit(findings, kernel, False, order).result()
    assert interpreting.submit(findings, kernel, True, order).result() == set()

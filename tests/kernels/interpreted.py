"""What runs inside an interpreting process: one function a kind of check, results sent back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from avl_plugins.kernels.catalog import Variant, scale_bits
from interpreted_memory import watched
from interpreter import shuffled_programs
from kernel_cases import (
    Attention,
    Errors,
    Values,
    attend,
    attention_errors,
    triton_launch,
)


@contextmanager
def checked(order: int | None) -> Iterator[None]:
    """Programs in an order of their own; no access out of bounds, no race.

    Raises:
        AssertionError: there was one.
    """
    with shuffled_programs(order), watched() as wrong:
        yield
    if wrong:
        raise AssertionError(f"{len(wrong)} accesses are wrong: {sorted(set(wrong))}")


def attention(case: Attention, order: int | None, stretch: float = 1.0) -> Errors:
    """Errors of a case; `stretch` makes the kernel's scale wrong by that factor."""
    inputs = case.inputs()

    def launch(variant: Variant, values: Values) -> None:
        scale = scale_bits(stretch * case.head_dim**-0.5)
        triton_launch(variant, {**values, "scale_bits": scale})

    with checked(order):
        outputs = attend(case, launch, inputs)
    return attention_errors(case, inputs, outputs)


def without_bias(plain: Attention, case: Attention) -> Errors:
    """Errors of a case whose bias is left out."""
    inputs = case.inputs()
    return attention_errors(case, inputs, attend(plain, triton_launch, inputs))


def outputs_of(case: Attention, order: int | None) -> list[np.ndarray[Any, Any]]:
    inputs = case.inputs()
    with checked(order):
        return [tensor.float().numpy() for tensor in attend(case, triton_launch, inputs)]


def run(check: Callable[..., Any], order: int | None, *arguments: Any) -> Any:
    """A check of `kernel_moves` or `kernel_sequences`, interpreted."""
    with checked(order):
        return check(triton_launch, "cpu", *arguments)

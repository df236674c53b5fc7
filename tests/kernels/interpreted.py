"""What runs inside an interpreting process: one function a kind of check, results sent back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from avl_plugins.kernels.catalog import Variant, scale_bits
from interpreter import shuffled_programs
from kernel_cases import (
    Attention,
    Errors,
    Values,
    attend,
    attention_errors,
    triton_launch,
)


def attention(case: Attention, order: int | None, stretch: float = 1.0) -> Errors:
    """Errors of a case; `stretch` makes the kernel's scale wrong by that factor."""
    inputs = case.inputs()

    def launch(variant: Variant, values: Values) -> None:
        scale = scale_bits(stretch * case.head_dim**-0.5)
        triton_launch(variant, {**values, "scale_bits": scale})

    with shuffled_programs(order):
        outputs = attend(case, launch, inputs)
    return attention_errors(case, inputs, outputs)


def outputs_of(case: Attention, order: int | None) -> list[np.ndarray[Any, Any]]:
    inputs = case.inputs()
    with shuffled_programs(order):
        return [tensor.float().numpy() for tensor in attend(case, triton_launch, inputs)]


def run(check: Callable[..., Any], order: int | None, *arguments: Any) -> Any:
    """A check of `kernel_moves` or `kernel_sequences`, interpreted."""
    with shuffled_programs(order):
        return check(triton_launch, "cpu", *arguments)

"""What forms of SplitCacheAttention must agree with the reference in, and how closely."""

from __future__ import annotations

from typing import Any

import numpy as np

from avl_plugins.reference import split_cache_attention
from avl_plugins.schema import SPLIT_CACHE_ATTENTION
from ops.op_models import Arrays


def scale_of(head_dim: int) -> float:
    return head_dim**-0.5


def expected(arrays: Arrays) -> tuple[np.ndarray[Any, Any], ...]:
    ordered = [arrays[value.name] for value in SPLIT_CACHE_ATTENTION.inputs]
    return split_cache_attention(*ordered, scale=scale_of(arrays["q"].shape[3]))


def assert_agrees(arrays: Arrays, outputs: list[np.ndarray[Any, Any]]) -> None:
    """Outputs in float32 are the reference's, in shape, dtype and value."""
    for found, wanted in zip(outputs, expected(arrays), strict=True):
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert_masked_rows_have_no_mass(arrays, outputs)


def assert_masked_rows_have_no_mass(arrays: Arrays, outputs: list[np.ndarray[Any, Any]]) -> None:
    for place, mass in zip(("active", "parked"), outputs[1:3], strict=True):
        for b, used in enumerate(arrays[f"{place}_len"]):
            assert not mass[b, :, :, used:].any()


def assert_agrees_to_rounding(
    arrays: Arrays, outputs: list[np.ndarray[Any, Any]], u: float
) -> None:
    """T rounds to `u` relative; softmax and masses are in float32 whatever T is.

    An output sums three rounded products of rounded probabilities and is rounded itself: some 6u of
    the largest value. Roundings of scores are independent and cancel where probabilities are summed
    or average values, which leaves less than that again.
    """
    wanted = expected(arrays)
    largest = max(
        float(np.abs(arrays[f"v_{place}"][b, :, :used]).max(initial=0))
        for place in ("active", "parked", "new")
        for b, used in enumerate(arrays.get(f"{place}_len", [None] * len(arrays["q"])))
    )
    np.testing.assert_allclose(
        outputs[0].astype(float), wanted[0].astype(float), rtol=0, atol=6 * u * largest
    )
    weight = float(arrays["row_weights"].sum(axis=2).max())
    for found, mass in zip(outputs[1:], wanted[1:], strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, mass, rtol=0, atol=3 * u * weight)
    assert_masked_rows_have_no_mass(arrays, outputs)

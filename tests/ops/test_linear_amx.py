"""Linear of many rows in bf16 on AMX, for sessions that ask for it, against float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from avl_plugins import cpu
from ops.op_models import session
from ops.test_plain_linear import TYPES, Floats, Linear, model_of, random_linear

LEAST = 64  # rows
IN_BF16 = {"avl.linears": "bf16"}


def in_bf16(array: NDArray[np.float32]) -> NDArray[np.float64]:
    return array.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def products(linear: Linear, library: Path, amx: str = "on", threads: int = 2) -> list[Floats]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cpu.AMX_SWITCH, amx)
        run = session(model_of(linear), library, IN_BF16, intra_op_num_threads=threads)
    return run.run(None, {"x": linear.x})


@st.composite
def linears(draw: st.DrawFn) -> Linear:
    rows = draw(st.one_of(st.integers(LEAST, 130), st.integers(250, 320), st.integers(630, 690)))
    outputs = draw(st.lists(st.integers(1, 200), min_size=1, max_size=3))
    inputs = 16 * draw(st.one_of(st.integers(1, 12), st.integers(30, 70)))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    return random_linear(numbers, rows, inputs, outputs, draw(st.sampled_from(TYPES)))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(linear=linears())
def test_rows_and_weights_are_multiplied_in_bf16(amx_kernel: Path, linear: Linear) -> None:
    x = in_bf16(linear.x)
    for found, stored in zip(products(linear, amx_kernel), linear.weights, strict=True):
        weight = in_bf16(stored)
        # What as many float32 sums may round, and what is taken for 0 as it is below its normals.
        terms = np.abs(x) @ np.abs(weight).T
        error = x.shape[1] * (2.0**-24 * terms + 2.0**-126 * np.abs(x).max())
        assert found.dtype == np.float32
        assert (np.abs(found - x @ weight.T) <= error).all()


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_few_rows_and_amx_switched_off_are_float32(amx_kernel: Path, kind: np.dtype[Any]) -> None:
    numbers = np.random.default_rng(3)
    for rows in (1, LEAST - 1, LEAST):
        linear = random_linear(numbers, rows, 80, [70, 3], kind)
        plain = session(model_of(linear), amx_kernel, intra_op_num_threads=2)
        wanted = plain.run(None, {"x": linear.x})
        for found, other in zip(products(linear, amx_kernel), wanted, strict=True):
            assert np.array_equal(found, other) == (rows < LEAST)
        for found, other in zip(products(linear, amx_kernel, "off"), wanted, strict=True):
            np.testing.assert_array_equal(found, other)


def test_threads_change_nothing(amx_kernel: Path) -> None:
    linear = random_linear(np.random.default_rng(0), 300, 336, [260, 40, 64], TYPES[0])
    one, two = (products(linear, amx_kernel, threads=threads) for threads in (1, 2))
    for found, wanted in zip(two, one, strict=True):
        np.testing.assert_array_equal(found, wanted)

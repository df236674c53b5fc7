"""Attention of prompts in bf16 on AMX, against float64."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from avl_plugins import cpu
from ops.agreement import assert_masked_rows_have_no_mass, expected, scale_of
from ops.op_models import Arrays, run, session
from ops.test_attention_function import attention_model, key_of
from ops.test_prompt_kernel import prompt_inputs, prompts

LEAST = 64  # rows
HEAD_DIMS = (5, 20, 32, 64, 80, 96, 128, 256)
IN_BF16 = {"avl.attention": "bf16"}
Doubles = NDArray[np.float64]


@functools.cache
def on_tiles(kernels: Path, *key: Any, threads: int = 2) -> ort.InferenceSession:
    return session(attention_model(*key), kernels, IN_BF16, intra_op_num_threads=threads)


@functools.cache
def in_float32(kernels: Path, *key: Any) -> ort.InferenceSession:
    return session(attention_model(*key), kernels, intra_op_num_threads=2)


def in_bf16(array: NDArray[np.float32]) -> Doubles:
    return array.astype(ml_dtypes.bfloat16).astype(np.float64)


def rows_of(arrays: Arrays, part: str, sequence: int, head: int) -> NDArray[np.float32]:
    """A head's keys or values in the order in which they are seen."""
    return np.concatenate(
        [
            arrays[f"{part}_{place}"][sequence, head, : arrays[f"{place}_len"][sequence]]
            for place in ("active", "parked")
        ]
        + [arrays[f"{part}_new"][sequence, head]]
    )


def by_float64(arrays: Arrays) -> tuple[Doubles, Doubles]:
    """What attention of rounded queries, keys and values is, and how far rounded weights may lie.

    Scores are sums in float32, weights powers of two of them, 1e-4 off at most and rounded to bf16,
    and sums of weights are of those before rounding.
    """
    batch, heads, rows, d = arrays["q"].shape
    group = heads // arrays["k_new"].shape[1]
    unit = np.float32(scale_of(d)) * np.float32(np.log2(np.e))
    out, bound = (np.empty(arrays["q"].shape) for _ in range(2))
    for b in range(batch):
        for h in range(heads):
            q = in_bf16(arrays["q"][b, h] * unit)
            k, v = (in_bf16(rows_of(arrays, part, b, h // group)) for part in "kv")
            seen = np.tri(rows, len(k), len(k) - rows, dtype=np.bool_)
            scores = np.where(seen, q @ k.T, -np.inf)
            weights = np.exp2(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            terms = np.abs(q) @ np.abs(k).T
            error = np.log(2) * (d + 2) * 2.0**-24 * np.where(seen, terms, 0).max(axis=1)
            out[b, h] = weights @ v
            relative = 2.0**-8 + 2e-4 + len(k) * 2.0**-24 + 2 * error[:, None]
            bound[b, h] = relative * (weights @ np.abs(v))
    return out, bound


def assert_is_rounded(arrays: Arrays, outputs: list[np.ndarray[Any, Any]]) -> None:
    """Outputs are within their bound, and masses what they are in float32."""
    wanted, bound = by_float64(arrays)
    assert (np.abs(outputs[0] - wanted) <= bound).all()
    for found, mass in zip(outputs[1:], expected(arrays)[1:], strict=True):
        np.testing.assert_allclose(found, mass, rtol=1e-5, atol=1e-5)
    assert_masked_rows_have_no_mass(arrays, outputs)


# More rows and keys than a group or a block takes.
ROWS = st.one_of(st.sampled_from((64, 65, 95, 96, 97)), st.integers(64, 300))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(arrays=prompts(ROWS, (1, 40, 700), HEAD_DIMS))
def test_prompts_are_as_near_to_float64_as_rounding_lets_them(
    amx_kernel: Path, arrays: Arrays
) -> None:
    assert_is_rounded(arrays, run(on_tiles(amx_kernel, *key_of(arrays)), arrays))


def _prompt(rows: int, active: int, weighted: float = 0.3, seed: int = 0) -> Arrays:
    sizes = {"B": 2, "H": 6, "Hkv": 2, "S": rows, "D": 64, "A": active + 4, "P": 40, "R": 2}
    return prompt_inputs(sizes, {"active": [active, 3], "parked": [0, 40]}, weighted, seed)


@pytest.mark.parametrize("rows", [LEAST - 1, LEAST])
def test_few_rows_are_computed_in_float32(amx_kernel: Path, rows: int) -> None:
    arrays = _prompt(rows, 70)
    plain, found = (one(amx_kernel, *key_of(arrays)) for one in (in_float32, on_tiles))
    outputs = [run(one, arrays)[0] for one in (plain, found)]
    assert np.array_equal(*outputs) == (rows < LEAST)


def test_switched_off_it_is_float32(amx_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = _prompt(100, 70)
    monkeypatch.setenv(cpu.AMX_SWITCH, "off")
    off = session(attention_model(*key_of(arrays)), amx_kernel, IN_BF16, intra_op_num_threads=2)
    plain = in_float32(amx_kernel, *key_of(arrays))
    for found, wanted in zip(run(off, arrays), run(plain, arrays), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_an_entry_says_fp32_or_bf16(kernels: Path) -> None:
    model = attention_model(2, 2, 8)
    session(model, kernels, {"avl.attention": "fp32"})
    with pytest.raises(Exception, match="expected a session's entries of avl to be fp32 or bf16"):
        session(model, kernels, {"avl.attention": "fp8"})


def test_threads_change_nothing(amx_kernel: Path) -> None:
    arrays = _prompt(300, 500)
    key = key_of(arrays)
    one, two = (run(on_tiles(amx_kernel, *key, threads=threads), arrays) for threads in (1, 2))
    for found, wanted in zip(two, one, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("factor", [1e-3, 30.0, 1e3])
def test_scores_of_any_size(amx_kernel: Path, factor: float) -> None:
    arrays = _prompt(200, 1000, 0.0)
    arrays["q"] *= np.float32(factor)
    wanted, bound = by_float64(arrays)
    found = run(on_tiles(amx_kernel, *key_of(arrays)), arrays)[0]
    assert (np.abs(found - wanted) <= bound).all()


def test_scores_that_rise_and_fall(amx_kernel: Path) -> None:
    """What weights are relative to follows the greatest score, at a distance."""
    arrays = _prompt(130, 600, 0.0)
    for name in ("k_active", "k_parked", "k_new"):
        rows = arrays[name].shape[2]
        arrays[name] *= np.linspace(0.01, 12, rows, dtype=np.float32)[:, None]
    arrays["k_active"] = arrays["k_active"].copy()
    wanted, bound = by_float64(arrays)
    found = run(on_tiles(amx_kernel, *key_of(arrays)), arrays)[0]
    assert (np.abs(found - wanted) <= bound).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_in_a_row_stays_in_it(amx_kernel: Path, value: float) -> None:
    arrays = _prompt(200, 700)
    broken = {name: array.copy() for name, array in arrays.items()}
    broken["q"][:, 1, 4] = value
    plain, found = (run(on_tiles(amx_kernel, *key_of(a)), a) for a in (arrays, broken))
    assert np.isnan(found[0][:, 1, 4]).all()
    rest = np.ones(plain[0].shape, np.bool_)
    rest[:, 1, 4] = False
    np.testing.assert_array_equal(found[0][rest], plain[0][rest])


@pytest.mark.parametrize(("name", "length"), [("active_len", 75), ("parked_len", -1)])
def test_a_length_past_the_rows_is_refused(amx_kernel: Path, name: str, length: int) -> None:
    arrays = _prompt(100, 70)
    arrays[name][:] = length
    with pytest.raises(Exception, match="lengths within capacities"):
        run(on_tiles(amx_kernel, *key_of(arrays)), arrays)

"""Attention of prompts over codes in whole numbers (VNNI), against float64."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from avl_plugins import cpu, reference
from avl_plugins.cpu.build import compiler, knows
from avl_plugins.schema import rotation
from ops.agreement import scale_of
from ops.op_models import Arrays, run, session
from ops.test_prompt_amx import IN_BF16
from ops.test_prompt_kernel import prompt_inputs
from ops.test_quantized_cache import assert_right, coded_inputs, key_of, quantized_model
from support.compiled import require

LARGEST, MOST = 127 * 256, 256 * 256 - 1  # of two digits, with a sign and without
VNNI = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
Doubles = NDArray[np.float64]


@pytest.fixture
def whole(quantized_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library where sessions opened now take VNNI and no AMX."""
    require(VNNI)
    if not knows(compiler(), VNNI):
        pytest.skip("this compiler does not know VNNI")
    monkeypatch.setenv(cpu.AMX_SWITCH, "off")
    return quantized_kernel


@functools.cache
def opened(kernels: Path, rounds: bool, threads: int, *key: int) -> ort.InferenceSession:
    entries = IN_BF16 if rounds else {}
    return session(quantized_model(*key), kernels, entries, intra_op_num_threads=threads)


def computed(kernels: Path, arrays: Arrays, *, rounds: bool = True, threads: int = 2) -> list[Any]:
    return run(opened(kernels, rounds, threads, *key_of(arrays)), arrays)


def rows_of(
    arrays: Arrays, made: list[Any], part: str, sequence: int, head: int
) -> tuple[Doubles, Doubles]:
    """A head's codes and scales in the order in which they are seen."""
    codes, scales = [], []
    for place in ("active", "parked"):
        used = arrays[f"{place}_len"][sequence]
        codes.append(arrays[f"{part}_{place}"][sequence, head, :used])
        scales.append(arrays[f"{part}_{place}_scale"][sequence, head, :used])
    new = "kv".index(part)
    codes.append(made[4 + new][sequence, head])
    scales.append(made[6 + new][sequence, head])
    return np.concatenate(codes).astype(np.float64), np.concatenate(scales).astype(np.float64)


def by_float64(arrays: Arrays, made: list[Any]) -> tuple[Doubles, Doubles]:
    """Attention of the codes, and how far two digits of queries and weights may be from it.

    A query's numbers are off by half of its greatest over LARGEST, which moves scores, and weights
    by their exponent. Weights times values' scales are off by half of the greatest over MOST.
    """
    batch, heads, rows, d = arrays["q"].shape
    group = heads // arrays["k_new"].shape[1]
    turned = arrays["q"].astype(np.float64) @ rotation(d)
    out, bound = (np.empty(arrays["q"].shape) for _ in range(2))
    for b in range(batch):
        for h in range(heads):
            k, k_scale = rows_of(arrays, made, "k", b, h // group)
            v, v_scale = rows_of(arrays, made, "v", b, h // group)
            q, keys, values = turned[b, h], k * k_scale, v * v_scale
            seen = np.tri(rows, len(k), len(k) - rows, dtype=np.bool_)
            scores = np.where(seen, scale_of(d) * (q @ keys.T), -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            step = 0.5 * np.abs(q).max(axis=1, keepdims=True) / LARGEST
            terms = np.abs(q) @ np.abs(keys).T
            error = step * np.abs(keys).sum(axis=1) + (d + 4) * 2.0**-24 * terms
            error = scale_of(d) * np.where(seen, error, 0).max(axis=1, keepdims=True)
            relative = np.expm1(2 * error) + (len(k) + 8) * 2.0**-23
            unit = 0.51 * (weights * v_scale.T).max(axis=1, keepdims=True) / MOST
            out[b, h] = weights @ values
            bound[b, h] = relative * (weights @ np.abs(values))
            bound[b, h] += (1 + relative) * unit * (seen @ np.abs(v))
    return out, bound


def assert_is_rounded(kernels: Path, arrays: Arrays) -> None:
    """Outputs are within their bound; masses and new rows are those of float32."""
    plain = computed(kernels, arrays, rounds=False)
    found = computed(kernels, arrays)
    wanted, bound = by_float64(arrays, found)
    assert (np.abs(found[0] - wanted) <= bound).all()
    for one, other in zip(found[1:4], plain[1:4], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(found[4:], plain[4:], strict=True):
        np.testing.assert_array_equal(one, other)


HEADS = ((2, 2, 64), (6, 2, 128), (4, 1, 80), (3, 3, 16), (2, 1, 256))  # query, KV, their size


def test_prompts_are_as_near_to_float64_as_two_digits_let_them(whole: Path) -> None:
    lengths = st.lists(st.integers(0, 150), min_size=2, max_size=2)

    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(st.sampled_from(HEADS), st.integers(64, 150), lengths, lengths, st.integers(0, 999))
    def check(
        heads: tuple[int, int, int], rows: int, active: list[int], parked: list[int], seed: int
    ) -> None:
        sizes = dict(zip(("H", "Hkv", "D"), heads, strict=True))
        sizes |= {"B": 2, "S": rows, "A": max(active) + 1, "P": max(parked) + 1, "R": 2}
        arrays = prompt_inputs(sizes, {"active": active, "parked": parked}, 0.2, seed)
        assert_is_rounded(whole, coded_inputs(arrays))

    check()


def _prompt(rows: int, d: int = 64) -> Arrays:
    sizes = {"B": 2, "H": 6, "Hkv": 2, "S": rows, "D": d, "A": 204, "P": 40, "R": 2}
    return prompt_inputs(sizes, {"active": [200, 3], "parked": [0, 40]}, 0.3, 0)


@pytest.mark.parametrize("factor", [1e-3, 30.0, 1e3])
def test_scores_of_any_size(whole: Path, factor: float) -> None:
    arrays = _prompt(130)
    arrays["q"] *= np.float32(factor)
    assert_is_rounded(whole, coded_inputs(arrays))


def test_scores_that_rise_and_fall(whole: Path) -> None:
    """What weights are relative to follows the greatest score, at a distance."""
    arrays = _prompt(130)
    for name in ("k_active", "k_parked", "k_new"):
        arrays[name] *= np.linspace(0.01, 12, arrays[name].shape[2], dtype=np.float32)[:, None]
    assert_is_rounded(whole, coded_inputs(arrays))


@pytest.mark.parametrize(("rows", "d"), [(63, 64), (64, 5), (64, 24), (64, 528), (64, 64)])
def test_few_rows_and_odd_heads_are_computed_in_float32(whole: Path, rows: int, d: int) -> None:
    arrays = coded_inputs(_prompt(rows, d))
    plain, found = (computed(whole, arrays, rounds=one) for one in (False, True))
    assert_right(arrays, plain)
    assert np.array_equal(plain[0], found[0]) == (rows < 64 or d != 64)


def test_threads_change_nothing(whole: Path) -> None:
    arrays = coded_inputs(_prompt(300))
    one, two = (computed(whole, arrays, threads=threads) for threads in (1, 2))
    for found, wanted in zip(two, one, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_in_a_query_stays_in_its_row(whole: Path, value: float) -> None:
    """Its head's rotation spreads it over the row, and over no other."""
    arrays = coded_inputs(_prompt(200))
    broken = arrays | {"q": arrays["q"].copy()}
    broken["q"][:, 1, 4, 7] = value
    plain, found = (computed(whole, one) for one in (arrays, broken))
    assert np.isnan(found[0][:, 1, 4]).all()
    rest = np.ones(plain[0].shape, np.bool_)
    rest[:, 1, 4] = False
    np.testing.assert_array_equal(found[0][rest], plain[0][rest])


def test_nothing_but_zeros(whole: Path) -> None:
    arrays = _prompt(64)
    for name in ("q", "v_new", "v_active", "v_parked"):
        arrays[name] = np.zeros_like(arrays[name])
    found = computed(whole, coded_inputs(arrays))
    assert not found[0].any()
    assert reference.decoded(found[4], found[6]).any()

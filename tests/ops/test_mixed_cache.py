"""Attention of rows of which parked ones are codes of 4 or 2 bits: bodies against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins import reference
from avl_plugins.bodies.function import split_cache_attention_functions
from avl_plugins.bodies.kept_function import kept_attention_function
from avl_plugins.schema import INT8_INT2, INT8_INT4, ROW_OPS, RowType, rotation
from avl_runtime.kv.parking import narrow, widen
from ops.agreement import assert_masked_rows_have_no_mass, scale_of
from ops.op_models import Arrays, attention_inputs, op_model, run, session

KINDS = (INT8_INT4, INT8_INT2)
ERRORS = {4: 0.0116, 2: 0.119}  # mean squares of the best uniform codes of normal numbers


def active_rows(rows: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Planes of rows [..., D] that are keys and, halved, values."""
    keys, values = reference.coded(rows), reference.coded(rows / 2)
    return [keys[0], values[0], keys[1], values[1]]


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("width", [8, 32, 64, 80, 128])
def test_parked_rows_err_as_little_as_such_codes_can(bits: int, width: int) -> None:
    rows = np.random.default_rng(width).standard_normal((3, 700, width)) * 7
    planes = active_rows(rows)
    packed = narrow(planes, bits)
    assert [plane.shape[-1] for plane in packed] == [width * bits // 8] * 2 + [1, 1]
    assert [plane.dtype for plane in packed] == [np.uint8] * 2 + [np.float32] * 2
    for index, exact in enumerate((rows, rows / 2)):
        found = reference.unpacked(packed[index], packed[index + 2], bits)
        error = np.mean((found - exact) ** 2) / np.mean(exact**2)
        assert error < 1.02 * ERRORS[bits]
        wide = widen(packed, bits)
        again = reference.decoded(wide[index], wide[index + 2])
        largest = np.abs(found).max(-1, keepdims=True)
        assert (np.abs(again - found) <= 0.502 * largest / 127).all()
        back = wide
        for _ in range(5):  # nothing is lost by going to and fro
            packed_again = narrow(back, bits)
            back = widen(packed_again, bits)
        assert np.mean(packed_again[index] != packed[index]) < 1e-2
        after = reference.unpacked(packed_again[index], packed_again[index + 2], bits)
        assert np.mean((after - exact) ** 2) / np.mean(exact**2) < error + 5e-4


def test_rows_of_zeros_are_parked_as_zeros() -> None:
    planes = active_rows(np.zeros((2, 3, 16)))
    for bits in (4, 2):
        packed = narrow(planes, bits)
        assert not reference.unpacked(packed[0], packed[2], bits).any()
        for found, right in zip(widen(packed, bits), planes, strict=True):
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("kept", KINDS, ids=lambda kept: kept.name)
def test_the_body_agrees_with_the_reference(kept: RowType) -> None:
    @settings(max_examples=15, deadline=None, derandomize=True, database=None)
    @given(
        arrays=st.sampled_from((8, 64, 80)).flatmap(lambda d: attention_inputs(2, d)),
        seed=st.integers(0, 99),
    )
    def check(arrays: Arrays, seed: int) -> None:
        width, numbers = arrays["q"].shape[3], np.random.default_rng(seed)
        for kind in "kv":
            name = f"{kind}_active"
            arrays[name], arrays[f"{name}_scale"] = reference.coded(arrays[name])
            shape = arrays[f"{kind}_parked"].shape[:3]
            bytes_ = width * kept.parked_bits // 8
            arrays[f"{kind}_parked"] = numbers.integers(0, 256, (*shape, bytes_)).astype(np.uint8)
            arrays[f"{kind}_parked_scale"] = numbers.random((*shape, 1), np.float32)
        assert_right(kept, arrays)

    check()


def assert_right(kept: RowType, arrays: Arrays) -> None:
    heads, kv_heads, width = arrays["q"].shape[1], arrays["k_new"].shape[1], arrays["q"].shape[3]
    functions = (
        *split_cache_attention_functions(heads=(heads, kv_heads)),
        kept_attention_function(kept, [width]),
    )
    sizes = {"H": heads, "Hkv": kv_heads, "D": width, "E": 1, "W": width * kept.parked_bits // 8}
    model = op_model(ROW_OPS[kept.name], functions, sizes, {"scale": scale_of(width)})
    outputs = run(session(model, None), arrays)
    out, *masses = outputs[:4]
    k_made, v_made, k_scale, v_scale = outputs[4:]
    turn = rotation(width)
    for name, codes, scale in (("k_new", k_made, k_scale), ("v_new", v_made, v_scale)):
        rows = arrays[name].astype(np.float64) @ turn
        most = np.abs(rows).max(-1, keepdims=True) / 127
        assert (np.abs(reference.decoded(codes, scale) - rows) <= 0.501 * most + 1e-12).all()
    seen = {f"{x}_active": reference.decoded(*pair(arrays, f"{x}_active")) for x in "kv"}
    parked = {
        f"{x}_parked": reference.unpacked(*pair(arrays, f"{x}_parked"), kept.parked_bits)
        for x in "kv"
    }
    wanted, *wanted_masses = reference.split_cache_attention(
        arrays["q"].astype(np.float64) @ turn,
        reference.decoded(k_made, k_scale),
        reference.decoded(v_made, v_scale),
        *(*seen.values(), arrays["active_len"], *parked.values(), arrays["parked_len"]),
        arrays["row_weights"],
        scale=scale_of(width),
    )
    np.testing.assert_allclose(out, wanted @ turn, rtol=1e-4, atol=1e-4)
    for found, right in zip(masses, wanted_masses, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=2e-5)
    assert_masked_rows_have_no_mass(arrays, outputs)


def pair(arrays: Arrays, name: str) -> tuple[Any, Any]:
    return arrays[name], arrays[f"{name}_scale"]

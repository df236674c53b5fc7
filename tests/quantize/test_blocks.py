"""Scales and codes against float64 brute force."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from avl_export.checkpoint.source import round_to
from avl_export.options import METHODS
from avl_export.quantize.blocks import BEST, Method, dequantize, limits, quantize

DTYPES = {"fp32": np.float32, "fp16": np.float16}


def draw(seed: int, outputs: int, inputs: int) -> np.ndarray:
    """Weights with outliers, and one block of zeros."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((outputs, inputs)) * 0.05
    weights[rng.random(weights.shape) < 0.02] *= 6
    weights[0, :32] = 0
    return weights.astype(np.float32)


def error(weights: np.ndarray, codes: np.ndarray, scales: np.ndarray, block: int) -> np.ndarray:
    """Squared error of each block in float64, element by element."""
    outputs, inputs = weights.shape
    found = np.zeros((outputs, inputs // block))
    for row in range(outputs):
        for column in range(inputs):
            stands_for = float(codes[row, column]) * float(scales[row, column // block])
            found[row, column // block] += (float(weights[row, column]) - stands_for) ** 2
    return found


def best_error(block: np.ndarray, bits: int) -> float:
    """The least squared error over 4000 scales, in float64."""
    low, high = limits(bits)
    largest = np.abs(block).max()
    if largest == 0:
        return 0.0
    scales = largest / high * np.linspace(0.3, 1.2, 4000)[:, None]
    codes = np.clip(np.rint(block[None].astype(np.float64) / scales), low, high)
    return float(np.square(block - codes * scales).sum(-1).min())


def test_the_methods_are_those_of_the_options() -> None:
    assert get_args(Method) == METHODS
    assert set(BEST.values()) <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 64), (8, 32), (8, 128)])
def test_codes_are_the_nearest_to_their_scale(method: Method, bits: int, block: int) -> None:
    weights = draw(1, 6, 128)
    codes, scales = quantize(weights, bits, block, method)
    low, high = limits(bits)
    assert codes.dtype == np.int8
    assert codes.min() >= low
    assert codes.max() <= high
    assert (scales > 0).all()
    wide = np.repeat(scales.astype(np.float64), block, -1)
    nearest = np.clip(np.rint(weights / wide), low, high)
    # A tie to within float32's rounding may go either way.
    ties = np.abs(np.abs(weights / wide - np.floor(weights / wide)) - 0.5) < 1e-4
    assert ((codes == nearest) | ties).all()
    assert (codes[0, :32] == 0).all()


def test_rtn_gives_the_largest_weight_the_highest_code() -> None:
    weights = draw(2, 8, 96)
    codes, scales = quantize(weights, 4, 32, "rtn")
    blocks = np.abs(weights.astype(np.float64)).reshape(8, 3, 32)
    filled = blocks.max(-1) > 0
    np.testing.assert_allclose(scales[filled], blocks.max(-1)[filled] / 7, rtol=2**-11)
    assert (np.abs(codes.reshape(8, 3, 32)).max(-1)[filled] == 7).all()


@pytest.mark.parametrize("method", METHODS)
def test_16_bits_hold_scales_of_usual_weights(method: Method) -> None:
    weights = draw(5, 16, 256)
    weights[:4] *= 2**-10  # of blocks that have few digits in 16 bits
    _, scales = quantize(weights, 4, 32, method)
    np.testing.assert_array_equal(scales[4:], scales[4:].astype(np.float16))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**22])
def test_scales_keep_digits_that_16_bits_have_no_room_for(method: Method, factor: float) -> None:
    weights = draw(6, 4, 64)
    codes, scales = quantize(weights, 4, 32, method)
    other_codes, others = quantize(weights * np.float32(factor), 4, 32, method)
    filled = codes.reshape(4, 2, 32).any(-1)
    np.testing.assert_allclose(others[filled] / factor, scales[filled], rtol=2**-11)
    assert (np.abs(codes - other_codes) <= 1).all()


@pytest.mark.parametrize("block", [32, 64])
def test_clip_is_close_to_the_best_scale_there_is(block: int) -> None:
    weights = draw(3, 12, 128)
    clip = error(weights, *quantize(weights, 4, block, "clip"), block)
    rtn = error(weights, *quantize(weights, 4, block, "rtn"), block)
    best = np.array([[best_error(b, 4) for b in row.reshape(-1, block)] for row in weights])
    assert (clip <= rtn * (1 + 1e-5) + 1e-12).all()
    assert clip.sum() < 0.85 * rtn.sum()
    assert clip.sum() < 1.03 * best.sum()


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (2, 64), elements=st.floats(-4, 4, width=32)),
    st.sampled_from([4, 8]),
)
def test_clip_never_loses_to_rtn(weights: np.ndarray, bits: int) -> None:
    clip = error(weights, *quantize(weights, bits, 32, "clip"), 32)
    rtn = error(weights, *quantize(weights, bits, 32, "rtn"), 32)
    # Candidates are compared by the energy they explain, a sum in fp32 whose rounding may hide what
    # is left unexplained.
    energy = np.square(weights.astype(np.float64)).sum(1, keepdims=True)
    rounding = 32 * np.finfo(np.float32).eps * energy
    assert (clip <= rtn + rounding).all()


def test_hqq_makes_errors_sparser_than_rtn() -> None:
    weights = draw(4, 32, 256)

    def spread(method: Method) -> float:
        codes, scales = quantize(weights, 4, 64, method)
        errors = np.abs(weights - dequantize(codes, scales)).astype(np.float64)
        return float(np.power(errors, 0.7).sum())

    assert spread("hqq") < 0.97 * spread("rtn")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from(METHODS), st.sampled_from([4, 8]))
def test_rows_are_independent(seed: int, method: Method, bits: int) -> None:
    weights = draw(seed, 5, 64)
    codes, scales = quantize(weights, bits, 32, method)
    for row in range(5):
        alone = quantize(weights[row : row + 1], bits, 32, method)
        np.testing.assert_array_equal(codes[row], alone[0][0])
        np.testing.assert_array_equal(scales[row], alone[1][0])


@pytest.mark.parametrize("method", METHODS)
def test_a_power_of_two_only_moves_the_scales(method: Method) -> None:
    weights = draw(5, 4, 64)
    codes, scales = quantize(weights, 4, 32, method)
    moved, moved_scales = quantize(weights * np.float32(64), 4, 32, method)
    np.testing.assert_array_equal(codes, moved)
    filled = np.abs(weights.reshape(4, 2, 32)).max(-1) > 0
    np.testing.assert_array_equal(scales[filled] * 64, moved_scales[filled])


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_scales_are_rounded_before_codes_are_chosen(kind: str) -> None:
    weights = draw(6, 4, 64)
    codes, scales = quantize(weights, 4, 32, "clip", kind)
    np.testing.assert_array_equal(scales, round_to(scales, kind))
    wide = np.repeat(scales.astype(np.float64), 32, -1)
    within = np.abs(weights / wide) <= 7.5
    assert (np.abs(codes - weights / wide)[within] <= 0.5 + 1e-5).all()


@given(arrays(np.float32, 64, elements=st.floats(-1e4, 1e4, width=32)))
def test_rounding_to_bf16_is_to_the_nearest(values: np.ndarray) -> None:
    found = round_to(values, "bf16")
    assert not (found.view(np.uint32) & 0xFFFF).any()
    bits = values.view(np.uint32) & 0xFFFF0000
    for neighbour in (bits, bits + 0x10000):
        other = neighbour.astype(np.uint32).view(np.float32).astype(np.float64)
        assert (np.abs(found - values.astype(np.float64)) <= np.abs(other - values) + 1e-30).all()


def test_dequantize_with_zero_points() -> None:
    codes = np.array([[3, -8, 7, 0]], np.int8)
    scales = np.array([[0.5, 2.0]], np.float32)
    zeros = np.array([[-8, 7]], np.int8)
    np.testing.assert_array_equal(dequantize(codes, scales, zeros), [[5.5, 0, 0, -14]])

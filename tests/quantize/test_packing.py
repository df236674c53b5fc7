"""Bytes and words against loops over bits, and against ONNX's own packing."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import numpy_helper

from avl_export.quantize.packing import pack_int4, unpack_awq_rows, unpack_gptq_rows
from avl_runtime.package.quantization import unpack_int4
from quantize.packers import pack_awq, pack_gptq

CODES = st.integers(-8, 7)


@given(arrays(np.int8, array_shapes(min_dims=1, max_dims=3, max_side=6), elements=CODES))
def test_int4_bytes(half: np.ndarray) -> None:
    codes = np.concatenate([half, -1 - half], -1)
    packed = pack_int4(codes)
    flat = codes.reshape(-1, codes.shape[-1])
    expected = [
        [(int(row[i]) % 16) + 16 * (int(row[i + 1]) % 16) for i in range(0, len(row), 2)]
        for row in flat
    ]
    np.testing.assert_array_equal(packed.reshape(len(flat), -1), expected)
    np.testing.assert_array_equal(unpack_int4(packed), codes)


def test_onnx_reads_the_bytes() -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (6, 10)).astype(np.int8)
    tensor = onnx.helper.make_tensor(
        "codes", onnx.TensorProto.INT4, codes.shape, pack_int4(codes).tobytes(), raw=True
    )
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes)


def test_packing_takes_a_transposed_view() -> None:
    codes = np.random.default_rng(1).integers(-8, 8, (4, 6)).astype(np.int8)
    np.testing.assert_array_equal(pack_int4(codes.T), pack_int4(np.ascontiguousarray(codes.T)))


@given(st.integers(0, 1 << 30))
def test_gptq_words(seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 16, (16, 5))
    np.testing.assert_array_equal(unpack_gptq_rows(pack_gptq(codes)), codes - 8)


@given(st.integers(0, 1 << 30))
def test_awq_words(seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 16, (3, 24))
    np.testing.assert_array_equal(unpack_awq_rows(pack_awq(codes)), codes - 8)

"""QuantizedLinear: its body and its kernel against float64, and what the kernel refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from avl_plugins.function import quantized_linear_function
from avl_plugins.schema import DOMAIN
from ops.op_models import session

Codes = NDArray[np.int8]
Floats = NDArray[np.float32]

MOST = {4: 7, 8: 127}
MANY = 256  # rows that the kernel sums at a time


def packed(name: str, codes: Codes, bits: int) -> onnx.TensorProto:
    """Codes as an initializer; 4 bits have the even element in a byte's low half."""
    if bits == 8:
        return helper.make_tensor(name, TensorProto.INT8, codes.shape, codes.tobytes(), raw=True)
    halves = (codes.reshape(-1, 2) & 15).astype(np.uint8)
    raw = (halves[:, 0] | halves[:, 1] << 4).tobytes()
    return helper.make_tensor(name, TensorProto.INT4, codes.shape, raw, raw=True)


def model_of(codes: Codes, scales: Floats, bits: int, constant: bool = True) -> onnx.ModelProto:
    inputs, outputs = codes.shape
    blocks = {} if scales.ndim == 1 else {"block_size": inputs // len(scales)}
    attributes = {"axis": int(not blocks), "block_size": 0} | blocks
    names = ["x", "codes", "scales"]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])]
    weights = [packed("codes", codes, bits), onnx.numpy_helper.from_array(scales, "scales")]
    if not constant:
        given.append(helper.make_tensor_value_info("scales", TensorProto.FLOAT, scales.shape))
        weights.pop()
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("QuantizedLinear", names, ["y"], domain=DOMAIN, **attributes)],
            "linear",
            given,
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)],
        functions=[quantized_linear_function(23)],
        ir_version=11,
    )


def weight_of(codes: Codes, scales: Floats) -> NDArray[np.float64]:
    """[inputs, outputs]"""
    table = np.atleast_2d(scales).astype(np.float64)
    return codes * np.repeat(table, len(codes) // len(table), axis=0)


def rounded(x: Floats, span: int) -> NDArray[np.float64]:
    """x as the kernel rounds it: to 8 bits, with a scale for each `span` inputs."""
    parts = x.reshape(len(x), x.shape[1] // span, span)
    tops = np.abs(parts).max(-1, keepdims=True)
    factors = np.divide(np.float32(127), tops, where=tops > 0, out=np.zeros_like(tops))
    scales = tops.astype(np.float64) / 127
    return (np.rint(parts * factors) * scales).reshape(x.shape)


def span_of(scales: Floats, inputs: int) -> int:
    block = inputs if scales.ndim == 1 else inputs // len(scales)
    return next(span for span in (128, 64, 32) if block % span == 0)


@st.composite
def linears(draw: st.DrawFn) -> tuple[Floats, Codes, Floats, int]:
    bits = draw(st.sampled_from((4, 8)))
    block = draw(st.sampled_from((32, 64, 96, 128, 256, None)))
    inputs = (block or 32) * draw(st.integers(1, 5))
    outputs = draw(st.integers(1, 150)) * (2 if bits == 4 else 1)
    rows = draw(st.one_of(st.integers(0, 12), st.integers(MANY - 2, MANY + 6)))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (outputs,) if block is None else (inputs // block, outputs)
    codes = numbers.integers(-MOST[bits] - 1, MOST[bits] + 1, (inputs, outputs), np.int8)
    x = numbers.standard_normal((rows, inputs), np.float32)
    x *= np.exp(numbers.uniform(-9, 9, (rows, 1))).astype(np.float32)
    x[numbers.random(x.shape) < draw(st.sampled_from((0, 0.5, 1)))] = 0
    return x, codes, numbers.uniform(0.001, 0.1, shape).astype(np.float32), bits


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(linear=linears())
def test_the_kernel_agrees_with_whole_numbers_summed_in_float64(
    quantized_kernel: Path, linear: tuple[Floats, Codes, Floats, int]
) -> None:
    x, codes, scales, bits = linear
    run = session(model_of(codes, scales, bits), quantized_kernel, intra_op_num_threads=2)
    (found,) = run.run(None, {"x": x})
    weight, x_rounded = weight_of(codes, scales), rounded(x, span_of(scales, len(codes)))
    # float32 sums of as many terms as there are spans, each of this size at most
    error = 2.0**-21 * (np.abs(x_rounded) @ np.abs(weight))
    assert found.dtype == np.float32
    assert (np.abs(found - x_rounded @ weight) <= error + 1e-30).all()


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(linear=linears())
def test_the_body_is_the_product_with_what_codes_stand_for(
    linear: tuple[Floats, Codes, Floats, int],
) -> None:
    x, codes, scales, bits = linear
    run = session(model_of(codes, scales, bits), graph_optimization_level=_unoptimized())
    (found,) = run.run(None, {"x": x})
    weight = weight_of(codes, scales)
    error = 2.0**-20 * (np.abs(x).astype(np.float64) @ np.abs(weight))
    assert (np.abs(found - x @ weight) <= error + 1e-30).all()


def _unoptimized() -> Any:
    return ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def test_the_kernel_takes_the_place_of_the_body(quantized_kernel: Path) -> None:
    codes, scales = np.full((32, 2), 3, np.int8), np.ones((1, 2), np.float32)
    x = np.random.default_rng(1).random((1, 32), np.float32)
    results = [
        session(model_of(codes, scales, 4), library).run(None, {"x": x})[0]
        for library in (quantized_kernel, None)
    ]
    assert not np.array_equal(*results)  # one rounds x and the other does not
    np.testing.assert_allclose(*results, atol=32 * 3 * 0.5 / 127)


@pytest.mark.parametrize("factor", [0.0, 1e-40, 1e-38, 1e-30, 1e30])
@pytest.mark.parametrize("rows", [1, 7])
def test_rows_of_any_size(quantized_kernel: Path, factor: float, rows: int) -> None:
    numbers = np.random.default_rng(4)
    codes = numbers.integers(-8, 8, (64, 6), np.int8)
    scales = numbers.random((2, 6), np.float32)
    x = numbers.standard_normal((rows, 64), np.float32) * np.float32(factor)
    (found,) = session(model_of(codes, scales, 4), quantized_kernel).run(None, {"x": x})
    wanted = x.astype(np.float64) @ weight_of(codes, scales)
    np.testing.assert_allclose(found, wanted, atol=max(0.03 * factor * 64, 1e-34))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [1, 7])
def test_what_is_no_number_stays_none(quantized_kernel: Path, value: float, rows: int) -> None:
    codes, scales = np.ones((64, 4), np.int8), np.ones((2, 4), np.float32)
    x = np.ones((rows, 64), np.float32)
    x[0, 40] = value
    (found,) = session(model_of(codes, scales, 8), quantized_kernel).run(None, {"x": x})
    assert not np.isfinite(found[0]).any()
    np.testing.assert_allclose(found[1:], 64, rtol=1e-6)


@pytest.mark.parametrize(("inputs", "block"), [(48, 48), (48, None), (64, 16)])
def test_blocks_for_other_kernels_are_refused(
    quantized_kernel: Path, inputs: int, block: int | None
) -> None:
    shape = (4,) if block is None else (inputs // block, 4)
    model = model_of(np.zeros((inputs, 4), np.int8), np.ones(shape, np.float32), 8)
    with pytest.raises(Exception, match="multiple of 32 inputs"):
        session(model, quantized_kernel)


def test_scales_that_do_not_fit_are_refused(quantized_kernel: Path) -> None:
    model = model_of(np.zeros((64, 4), np.int8), np.ones((2, 4), np.float32), 8)
    model.graph.node[0].attribute[1].i = 64
    with pytest.raises(Exception, match="expected scales"):
        session(model, quantized_kernel)


def test_scales_that_are_not_constant_are_refused(quantized_kernel: Path) -> None:
    model = model_of(np.zeros((64, 4), np.int8), np.ones((2, 4), np.float32), 8, constant=False)
    with pytest.raises(Exception, match="weights that are initializers"):
        session(model, quantized_kernel)


def test_rows_of_another_width_are_refused(quantized_kernel: Path) -> None:
    model = model_of(np.zeros((64, 4), np.int8), np.ones((2, 4), np.float32), 8)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    with pytest.raises(Exception, match="with the weight's inputs"):
        session(model, quantized_kernel).run(None, {"x": np.zeros((1, 32), np.float32)})

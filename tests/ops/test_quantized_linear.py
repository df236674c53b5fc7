"""QuantizedLinear: its body and its kernel against float64, and what the kernel refuses."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator
from dataclasses import dataclass
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

from avl_plugins import cpu
from avl_plugins.bodies.linear_ops import QUANTIZED_LINEARS
from avl_plugins.cpu import build
from ops.linear_models import linear_model
from ops.op_models import session

Codes = NDArray[np.int8]
Floats = NDArray[np.float32]

MOST = {4: 7, 8: 127}
IS_ARM = platform.machine() in build.ARM
LEVELS = ("base", "dotprod", "i8mm") if IS_ARM else ("avx2", "avx-vnni", "vnni")  # with kernels
MANY = 256  # rows that the kernel sums at a time


def packed(name: str, codes: Codes, bits: int) -> onnx.TensorProto:
    """Codes as an initializer; 4 bits have the even element in a byte's low half."""
    if bits == 8:
        return helper.make_tensor(name, TensorProto.INT8, codes.shape, codes.tobytes(), raw=True)
    halves = (codes.reshape(-1, 2) & 15).astype(np.uint8)
    raw = (halves[:, 0] | halves[:, 1] << 4).tobytes()
    return helper.make_tensor(name, TensorProto.INT4, codes.shape, raw, raw=True)


@dataclass(frozen=True, slots=True)
class Linear:
    """Rows x [rows, inputs], codes [inputs, outputs] and scales and zero points [blocks, outputs].

    Without blocks the last two are [outputs].
    """

    x: Floats
    codes: Codes
    scales: Floats
    zeros: Codes | None
    bits: int

    @property
    def span(self) -> int:
        """Inputs of x that the kernel rounds with one scale."""
        blocks = 1 if self.scales.ndim == 1 else len(self.scales)
        block = len(self.codes) // blocks
        return next(span for span in (128, 64, 32) if block % span == 0)

    @property
    def weight(self) -> NDArray[np.float64]:
        """[inputs, outputs]"""

        def each(table: NDArray[Any]) -> NDArray[np.float64]:
            rows = np.atleast_2d(table).astype(np.float64)
            return np.repeat(rows, len(self.codes) // len(rows), axis=0)

        zeros = 0.0 if self.zeros is None else each(self.zeros)
        return (self.codes - zeros) * each(self.scales)


def model_of(*linears: Linear, fed: str | None = None) -> onnx.ModelProto:
    """One node for all `linears`, which have the same x."""
    first = linears[0]
    op = QUANTIZED_LINEARS[len(linears), first.zeros is not None]
    inputs = len(first.codes)
    blocks = {} if first.scales.ndim == 1 else {"block_size": inputs // len(first.scales)}
    attributes = {"axis": int(not blocks), "block_size": 0} | blocks
    names = [value.name for value in op.inputs]
    tensors: list[onnx.TensorProto] = []
    for linear in linears:
        at = 1 + len(tensors)
        tensors.append(packed(names[at], linear.codes, linear.bits))
        tensors.append(onnx.numpy_helper.from_array(linear.scales, names[at + 1]))
        if linear.zeros is not None:
            tensors.append(packed(names[at + 2], linear.zeros, linear.bits))
    outputs = [linear.codes.shape[1] for linear in linears]
    return linear_model(op, inputs, tensors, outputs, fed=fed, **attributes)


def plain(codes: Codes, scales: Floats, bits: int) -> Linear:
    """Without x and zero points."""
    return Linear(np.zeros((0, len(codes)), np.float32), codes, scales, None, bits)


NOTHING = plain(np.zeros((64, 4), np.int8), np.ones((2, 4), np.float32), 8)


def rounded(x: Floats, span: int) -> NDArray[np.float64]:
    """x as the kernel rounds it: to 8 bits, with a scale for each `span` inputs."""
    parts = x.reshape(len(x), x.shape[1] // span, span)
    tops = np.abs(parts).max(-1, keepdims=True)
    factors = np.divide(np.float32(127), tops, where=tops > 0, out=np.zeros_like(tops))
    scales = tops.astype(np.float64) / 127
    return (np.rint(parts * factors) * scales).reshape(x.shape)


@st.composite
def linears(draw: st.DrawFn) -> Linear:
    bits = draw(st.sampled_from((4, 8)))
    block = draw(st.sampled_from((32, 64, 96, 128, 256, None)))
    inputs = (block or 32) * draw(st.integers(1, 5))
    outputs = draw(st.integers(1, 150)) * (2 if bits == 4 else 1)
    rows = draw(st.one_of(st.integers(0, 12), st.integers(MANY - 2, MANY + 6)))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (outputs,) if block is None else (inputs // block, outputs)

    def codes(*shape: int) -> Codes:
        return numbers.integers(-MOST[bits] - 1, MOST[bits] + 1, shape, np.int8)

    x = numbers.standard_normal((rows, inputs), np.float32)
    x *= np.exp(numbers.uniform(-9, 9, (rows, 1))).astype(np.float32)
    x[numbers.random(x.shape) < draw(st.sampled_from((0, 0.5, 1)))] = 0
    zeros = codes(*shape) if draw(st.booleans()) else None
    return Linear(x, codes(inputs, outputs), draw(scales(numbers, shape)), zeros, bits)


@st.composite
def scales(draw: st.DrawFn, numbers: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Of float32, or numbers that 16 bits hold, of any size, all of them or all but one."""
    found = numbers.uniform(0.001, 0.1, shape).astype(np.float32)
    if draw(st.booleans()):
        return found
    found = np.exp(numbers.uniform(*draw(st.sampled_from(((-17, -9), (-7, 0), (0, 11)))), shape))
    halves = found.astype(np.float16).astype(np.float32)
    if draw(st.booleans()):
        halves.flat[draw(st.integers(0, halves.size - 1))] *= np.float32(1 + 2**-12)
    return halves


@pytest.fixture(scope="module", params=LEVELS)
def level(request: pytest.FixtureRequest, quantized_kernel: Path) -> Iterator[Path]:
    """The library without the instructions that come after a level's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cpu.LEVEL_SWITCH, request.param)
        yield quantized_kernel


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(linear=linears())
def test_the_kernel_agrees_with_whole_numbers_summed_in_float64(
    level: Path, linear: Linear
) -> None:
    run = session(model_of(linear), level, intra_op_num_threads=2)
    (found,) = run.run(None, {"x": linear.x})
    weight, x_rounded = linear.weight, rounded(linear.x, linear.span)
    # float32 sums of as many terms as there are spans, each of this size at most
    error = 2.0**-21 * (np.abs(x_rounded) @ np.abs(weight))
    assert found.dtype == np.float32
    assert (np.abs(found - x_rounded @ weight) <= error + 1e-30).all()


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(linear=linears(), sizes=st.lists(st.integers(1, 150), min_size=1, max_size=2))
def test_several_weights_give_what_each_gives_alone(
    quantized_kernel: Path, linear: Linear, sizes: list[int]
) -> None:
    group = [linear]
    for size in sizes:  # other columns of the same tables, repeated
        columns = np.arange(2 * size) * 7 % linear.codes.shape[1]
        tables = {
            name: None if table is None else np.ascontiguousarray(table[..., columns])
            for name in ("codes", "scales", "zeros")
            for table in (getattr(linear, name),)
        }
        group.append(dataclasses.replace(linear, **tables))
    feeds = {"x": linear.x}
    found = session(model_of(*group), quantized_kernel).run(None, feeds)
    for one, product in zip(group, found, strict=True):
        (alone,) = session(model_of(one), quantized_kernel).run(None, feeds)
        np.testing.assert_array_equal(product, alone)
    bodies = session(model_of(*group), graph_optimization_level=_unoptimized()).run(None, feeds)
    for one, product in zip(group, bodies, strict=True):
        np.testing.assert_allclose(product, one.x @ one.weight, rtol=1e-4, atol=1e-4 * _size(one))


def _size(linear: Linear) -> float:
    return float(np.abs(linear.x).max(initial=0) * np.abs(linear.weight).sum(0).max())


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(linear=linears())
def test_the_body_is_the_product_with_what_codes_stand_for(linear: Linear) -> None:
    run = session(model_of(linear), graph_optimization_level=_unoptimized())
    (found,) = run.run(None, {"x": linear.x})
    error = 2.0**-20 * (np.abs(linear.x).astype(np.float64) @ np.abs(linear.weight))
    assert (np.abs(found - linear.x @ linear.weight) <= error + 1e-30).all()


def _unoptimized() -> Any:
    return ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def test_levels_give_the_same_numbers(quantized_kernel: Path) -> None:
    """Sums are of whole numbers, and float32 adds those of spans in the same order."""
    numbers = np.random.default_rng(2)
    codes = numbers.integers(-128, 128, (192, 70), np.int8)
    linear = plain(codes, numbers.random((3, 70), np.float32), 8)
    x = numbers.standard_normal((5, 192), np.float32)
    found = []
    for name in LEVELS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(cpu.LEVEL_SWITCH, name)
            run = session(model_of(linear), quantized_kernel)
        found.append(run.run(None, {"x": x})[0])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_without_any_level_the_body_runs(quantized_kernel: Path) -> None:
    if IS_ARM:
        pytest.skip("every Arm has a kernel")
    codes, scales = np.full((32, 2), 3, np.int8), np.ones((1, 2), np.float32)
    x = np.random.default_rng(1).random((1, 32), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cpu.LEVEL_SWITCH, "base")
        run = session(model_of(plain(codes, scales, 8)), quantized_kernel)
    body = session(model_of(plain(codes, scales, 8)))
    np.testing.assert_array_equal(run.run(None, {"x": x})[0], body.run(None, {"x": x})[0])


def test_the_kernel_takes_the_place_of_the_body(quantized_kernel: Path) -> None:
    codes, scales = np.full((32, 2), 3, np.int8), np.ones((1, 2), np.float32)
    x = np.random.default_rng(1).random((1, 32), np.float32)
    results = [
        session(model_of(plain(codes, scales, 4)), library).run(None, {"x": x})[0]
        for library in (quantized_kernel, None)
    ]
    assert not np.array_equal(*results)  # one rounds x and the other does not
    np.testing.assert_allclose(*results, atol=32 * 3 * 0.5 / 127)


@pytest.mark.parametrize("factor", [0.0, 1e-40, 1e-38, 1e-30, 1e30])
@pytest.mark.parametrize("rows", [1, 7, 70])
def test_rows_of_any_size(level: Path, factor: float, rows: int) -> None:
    numbers = np.random.default_rng(4)
    codes = numbers.integers(-8, 8, (64, 6), np.int8)
    scales = numbers.random((2, 6), np.float32)
    x = numbers.standard_normal((rows, 64), np.float32) * np.float32(factor)
    (found,) = session(model_of(plain(codes, scales, 4)), level).run(None, {"x": x})
    weight, x64 = plain(codes, scales, 4).weight, x.astype(np.float64)
    # Too small to be rounded to a scale of float32, rows count as zeros.
    limit = np.abs(x64) @ np.abs(weight) if factor < 1e-36 else 0.03 * factor * 64
    assert (np.abs(found - x64 @ weight) <= limit).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [1, 7, 70])
def test_what_is_no_number_stays_none(level: Path, value: float, rows: int) -> None:
    codes, scales = np.ones((64, 4), np.int8), np.ones((2, 4), np.float32)
    x = np.ones((rows, 64), np.float32)
    x[0, 40] = value
    (found,) = session(model_of(plain(codes, scales, 8)), level).run(None, {"x": x})
    assert not np.isfinite(found[0]).any()
    np.testing.assert_allclose(found[1:], 64, rtol=1e-6)


@pytest.mark.parametrize(("inputs", "block"), [(48, 48), (48, None), (64, 16)])
def test_blocks_for_other_kernels_are_refused(
    quantized_kernel: Path, inputs: int, block: int | None
) -> None:
    shape = (4,) if block is None else (inputs // block, 4)
    model = model_of(plain(np.zeros((inputs, 4), np.int8), np.ones(shape, np.float32), 8))
    with pytest.raises(Exception, match="multiple of 32 inputs"):
        session(model, quantized_kernel)


def test_scales_that_do_not_fit_are_refused(quantized_kernel: Path) -> None:
    model = model_of(NOTHING)
    model.graph.node[0].attribute[1].i = 64
    with pytest.raises(Exception, match="expected scales"):
        session(model, quantized_kernel)


def test_zero_points_of_another_type_are_refused(quantized_kernel: Path) -> None:
    model = model_of(dataclasses.replace(NOTHING, zeros=np.zeros((2, 4), np.int8)))
    model.graph.initializer[2].CopyFrom(packed("zero_points", np.zeros((2, 4), np.int8), 4))
    with pytest.raises(Exception, match="zero points"):
        session(model, quantized_kernel)


def test_scales_that_are_not_constant_are_refused(quantized_kernel: Path) -> None:
    model = model_of(NOTHING, fed="scales")
    with pytest.raises(Exception, match="weights that are initializers"):
        session(model, quantized_kernel)


def test_weights_with_other_inputs_are_refused(quantized_kernel: Path) -> None:
    other = plain(np.zeros((32, 4), np.int8), np.ones((1, 4), np.float32), 8)
    with pytest.raises(Exception, match="with the same inputs"):
        session(model_of(NOTHING, other), quantized_kernel)


def test_rows_of_another_width_are_refused(quantized_kernel: Path) -> None:
    model = model_of(NOTHING)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    with pytest.raises(Exception, match="with the weight's inputs"):
        session(model, quantized_kernel).run(None, {"x": np.zeros((1, 32), np.float32)})

"""Linear: its body and its kernel against float64, and what the kernel refuses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from avl_plugins.bodies.linear_ops import PLAIN_LINEARS
from avl_plugins.cpu import build
from ops.linear_models import linear_model
from ops.op_models import session
from support.compiled import compiled, require

Floats = NDArray[np.float32]

# In the order of linear.h.
TYPES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32))
SETTINGS = {"deadline": None, "derandomize": True, "database": None}


@dataclass(frozen=True, slots=True)
class Linear:
    """Rows x [rows, inputs] and weights [outputs, inputs] of TYPES."""

    x: Floats
    weights: tuple[NDArray[Any], ...]

    def products(self) -> list[NDArray[np.float64]]:
        return [self.x.astype(np.float64) @ w.astype(np.float64).T for w in self.weights]

    def errors(self) -> list[NDArray[np.float64]]:
        """What float32 sums of so many terms may be off."""
        unit = 2.0**-23 * (2 + self.x.shape[1] / 8)
        sums = [np.abs(self.x).astype(np.float64) @ np.abs(w.astype(float)).T for w in self.weights]
        return [unit * each + 1e-40 for each in sums]


def random_linear(
    numbers: np.random.Generator, rows: int, inputs: int, outputs: list[int], kind: np.dtype[Any]
) -> Linear:
    """Both large and small numbers, and those too small for a full exponent."""
    x = numbers.standard_normal((rows, inputs), np.float32)
    x *= np.exp(numbers.uniform(-9, 9, (rows, 1))).astype(np.float32)
    sizes = np.exp(numbers.uniform(-16, 4, (1, inputs)))
    return Linear(
        x,
        tuple((numbers.standard_normal((size, inputs)) * sizes).astype(kind) for size in outputs),
    )


@st.composite
def linears(draw: st.DrawFn) -> Linear:
    rows = draw(st.one_of(st.integers(0, 24), st.integers(250, 262)))
    outputs = draw(st.lists(st.integers(1, 100), min_size=1, max_size=3))
    # Weights are widened for 1024 inputs at a time, and a few rows of some 1536 to 3072 inputs or
    # more no longer stay in the first cache.
    sizes = st.one_of(st.integers(1, 12), st.integers(62, 67), st.integers(95, 200))
    inputs = 16 * draw(sizes)
    numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    return random_linear(numbers, rows, inputs, outputs, draw(st.sampled_from(TYPES)))


def model_of(linear: Linear, fed: str | None = None) -> onnx.ModelProto:
    op = PLAIN_LINEARS[len(linear.weights)]
    tensors = [
        numpy_helper.from_array(weight, value.name)
        for weight, value in zip(linear.weights, op.inputs[1:], strict=True)
    ]
    outputs = [len(weight) for weight in linear.weights]
    return linear_model(op, linear.x.shape[1], tensors, outputs, fed=fed)


def assert_close(linear: Linear, found: list[Floats]) -> None:
    for one, wanted, error in zip(found, linear.products(), linear.errors(), strict=True):
        assert one.dtype == np.float32
        assert (np.abs(one - wanted) <= error).all()


@settings(max_examples=120, **SETTINGS)
@given(linear=linears())
def test_the_kernel_agrees_with_float64(linear_kernel: Path, linear: Linear) -> None:
    model = session(model_of(linear), linear_kernel, intra_op_num_threads=2)
    assert_close(linear, model.run(None, {"x": linear.x}))


@settings(max_examples=30, **SETTINGS)
@given(linear=linears())
def test_the_body_agrees_with_float64(linear: Linear) -> None:
    assert_close(linear, session(model_of(linear)).run(None, {"x": linear.x}))


class Stored(ctypes.Structure):
    """avl_stored of linear.h."""

    _fields_ = [
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("element", ctypes.c_int),
        ("data", ctypes.c_void_p),
    ]


@pytest.fixture(params=build.LINEAR_LEVELS, scope="module")
def level(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kernels: Path
) -> Callable[..., None]:
    """linear.c for a level of instructions that this processor has, without ONNX Runtime."""
    options = build.LINEAR_LEVELS[request.param]
    require(options)
    folder = tmp_path_factory.mktemp("level")
    library = compiled(build.LINEAR, folder, f"-DAVL_LEVEL={request.param}", *options)
    function: Callable[..., None] = getattr(library, request.param)
    return function


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("rows", [*range(1, 6), 16, 17, 19, 23, 257])
def test_a_level_fills_the_columns_it_is_asked_for(
    level: Callable[..., None], rows: int, kind: np.dtype[Any]
) -> None:
    numbers = np.random.default_rng(rows)
    for inputs, first, end in ((16, 0, 1), (48, 3, 21), (1040, 0, 43), (1024, 5, 5), (3088, 2, 41)):
        linear = random_linear(numbers, rows, inputs, [43], kind)
        (weight,) = linear.weights
        stored = Stored(inputs, 43, TYPES.index(kind), weight.ctypes.data)
        y = np.full((rows, 43), np.nan, np.float32)
        x, *columns = map(ctypes.c_int64, (rows, first, end))
        level(
            ctypes.byref(stored), ctypes.c_void_p(linear.x.ctypes.data), x, *columns,
            ctypes.c_void_p(y.ctypes.data),
        )  # fmt: skip
        asked = np.zeros(43, bool)
        asked[first:end] = True
        assert np.isnan(y[:, ~asked]).all()
        off = np.abs(y - linear.products()[0])[:, asked]
        assert (off <= linear.errors()[0][:, asked]).all()


@pytest.mark.parametrize("kind", TYPES[:2], ids=str)
@pytest.mark.parametrize("rows", [1, 30])
def test_every_weight_is_widened_exactly(
    linear_kernel: Path, kind: np.dtype[Any], rows: int
) -> None:
    """All patterns of 16 bits, of which x picks one an input at a time."""
    weight = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 16).view(kind)
    weight = np.where(np.isfinite(weight.astype(np.float32)), weight, kind.type(0))
    x = np.zeros((rows, 16), np.float32)
    run = session(model_of(Linear(x, (weight,))), linear_kernel)
    for column in range(16):
        x[:] = 0
        x[:, column] = 1
        (found,) = run.run(None, {"x": x})
        np.testing.assert_array_equal(found[0], weight[:, column].astype(np.float32))
        np.testing.assert_array_equal(found[-1], found[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [1, 30])
def test_what_is_no_number_stays_none(linear_kernel: Path, value: float, rows: int) -> None:
    weight = np.ones((6, 32), np.float16)
    weight[2, 7] = value
    linear = Linear(np.ones((rows, 32), np.float32), (weight,))
    (found,) = session(model_of(linear), linear_kernel).run(None, {"x": linear.x})
    assert not np.isfinite(found[:, 2]).any()
    np.testing.assert_array_equal(np.delete(found, 2, 1), 32)


PLAIN = Linear(np.zeros((1, 32), np.float32), (np.ones((4, 32), np.float16),) * 2)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((np.ones((4, 24), np.float16),), "multiple of 16 inputs"),
        ((np.ones((4, 32), np.float64),), "float16 or bfloat16"),
        ((*PLAIN.weights[:1], np.ones((4, 48), np.float16)), "with the same inputs"),
    ],
)
def test_weights_for_other_kernels_are_refused(
    linear_kernel: Path, weights: tuple[NDArray[Any], ...], message: str
) -> None:
    linear = Linear(np.zeros((1, weights[0].shape[1]), np.float32), weights)
    with pytest.raises(Exception, match=message):
        session(model_of(linear), linear_kernel)


def test_weights_that_are_not_constant_are_refused(linear_kernel: Path) -> None:
    with pytest.raises(Exception, match="weights that are initializers"):
        session(model_of(PLAIN, fed="weight_1"), linear_kernel)


def test_rows_of_another_width_are_refused(linear_kernel: Path) -> None:
    model = model_of(PLAIN)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    with pytest.raises(Exception, match="with the weight's inputs"):
        session(model, linear_kernel).run(None, {"x": np.zeros((1, 16), np.float32)})

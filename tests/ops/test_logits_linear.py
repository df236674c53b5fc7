"""LogitsLinear: what is left of logits of which the largest alone are read, against float64."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
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

from avl_plugins.bodies.linear_ops import LOGITS_LINEAR
from avl_plugins.cpu import build
from avl_plugins.cpu.host import host
from avl_plugins.cpu.logits import Wanted
from avl_plugins.logits import Logits
from ops.linear_models import linear_model
from ops.op_models import session
from ops.test_plain_linear import SETTINGS, TYPES, Linear, Stored, assert_close, random_linear
from support.compiled import compiled, require


def model_of(linear: Linear) -> onnx.ModelProto:
    (weight,) = linear.weights
    tensor = numpy_helper.from_array(weight, "weight")
    return linear_model(LOGITS_LINEAR, linear.x.shape[1], [tensor], [len(weight)])


@st.composite
def heads(draw: st.DrawFn) -> Linear:
    """Weights of which some are alike, or almost, or stand out in one input, or are nothing."""
    rows = draw(st.integers(1, 18))
    inputs, outputs = 16 * draw(st.integers(1, 40)), draw(st.integers(1, 400))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(TYPES))
    linear = random_linear(numbers, rows, inputs, [outputs], kind)
    weight = linear.weights[0].astype(np.float32)
    alike = numbers.integers(0, outputs, (2, draw(st.integers(0, 20))))
    near = 1 + draw(st.sampled_from([0, 1e-7, 1e-3])) * numbers.standard_normal((alike.shape[1], 1))
    weight[alike[0]] = weight[alike[1]] * near
    apart = numbers.integers(0, outputs, draw(st.integers(0, 5)))
    weight[apart, numbers.integers(0, inputs)] *= 50
    weight[numbers.integers(0, outputs, draw(st.integers(0, 3)))] *= draw(
        st.sampled_from([0, 1e-30])
    )
    return Linear(linear.x, (weight.astype(kind),))


def assert_the_largest_are_there(linear: Linear, found: NDArray[np.float32]) -> None:
    """What is left out is certainly smaller than the largest, and what is there is right."""
    (exact,), (errors,) = linear.products(), linear.errors()
    there = found != -np.inf
    assert (np.abs(found - exact) <= errors)[there].all()
    at_least = (exact - errors).max(1, keepdims=True)
    assert ((exact + errors >= at_least) <= there).all()


@settings(max_examples=150, **SETTINGS)
@given(linear=heads())
def test_the_largest_logits_are_right(linear_kernel: Path, linear: Linear) -> None:
    run = session(model_of(linear), linear_kernel, intra_op_num_threads=2).run
    with Wanted(host(), Logits.LARGEST):
        (found,) = run(None, {"x": linear.x})
    assert_the_largest_are_there(linear, found)
    (whole,) = run(None, {"x": linear.x})
    assert_close(linear, [whole])
    # Which logits are read does not decide between tokens that are almost alike.
    np.testing.assert_array_equal(found.argmax(1), whole.argmax(1))
    there = found != -np.inf
    np.testing.assert_array_equal(found[there], whole[there])


@settings(max_examples=20, **SETTINGS)
@given(linear=heads())
def test_the_body_gives_all(linear: Linear) -> None:
    with Wanted(host(), Logits.LARGEST):
        assert_close(linear, session(model_of(linear)).run(None, {"x": linear.x}))


class Screen(ctypes.Structure):
    """avl_screen of screen.h."""

    _fields_ = [
        ("codes", Stored),
        ("scales", ctypes.c_void_p),
        ("distances", ctypes.c_void_p),
    ]


class Screened(ctypes.Structure):
    """avl_screened of screen.h."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("y", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
    ]


class Screening(ctypes.Structure):
    """avl_screening of screen.h."""

    _fields_ = [
        (name, ctypes.CFUNCTYPE(None, *arguments))
        for name, arguments in {
            "multiply": (),
            "make": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64),
            "estimate": (*[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2, ctypes.c_void_p),
            "settle": (*[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 2, ctypes.c_void_p),
        }.items()
    ]


@pytest.fixture(params=build.SCREEN_LEVELS, scope="module")
def level(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kernels: Path
) -> Screening:
    """screen.c for a level of instructions that this processor has, without ONNX Runtime."""
    options = build.SCREEN_LEVELS[request.param]
    require(options)
    folder = tmp_path_factory.mktemp("level")
    linear, name = folder / "linear.o", request.param.replace("screen", "linear")
    command = [build.compiler(), *build.FLAGS, *options, f"-DAVL_LEVEL={name}"]
    subprocess.run([*command, "-c", build.FOLDER / build.LINEAR, "-o", linear], check=True)
    library = compiled(build.SCREEN, folder, f"-DAVL_LEVEL={request.param}", *options, str(linear))
    return Screening.in_dll(library, request.param)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 4, 16])
def test_a_level_keeps_to_its_distances(level: Screening, rows: int, kind: np.dtype[Any]) -> None:
    numbers = np.random.default_rng(rows)
    for inputs, outputs in ((16, 1), (528, 300), (1040, 64)):
        linear = random_linear(numbers, rows, inputs, [outputs], kind)
        (weight,) = linear.weights
        stored = Stored(inputs, outputs, TYPES.index(kind), weight.ctypes.data)
        codes = np.zeros((outputs, inputs), np.int8)
        scales, distances = np.zeros((2, outputs), np.float32)
        y = np.zeros((rows, outputs), np.float32)
        floors = np.zeros(rows, np.float32)
        lengths = (np.linalg.norm(linear.x.astype(float), axis=1) * (1 + 1e-6)).astype(np.float32)
        screen = Screen(
            Stored(inputs, outputs, len(TYPES), codes.ctypes.data),
            scales.ctypes.data,
            distances.ctypes.data,
        )
        screened = Screened(linear.x.ctypes.data, rows, y.ctypes.data, lengths.ctypes.data)
        level.make(ctypes.addressof(stored), ctypes.addressof(screen), 0, outputs)
        off = weight.astype(float) - scales[:, None].astype(float) * codes
        assert (np.linalg.norm(off, axis=1) <= distances).all()
        # Codes that are as good as 8 bits allow.
        assert (np.abs(off) <= scales[:, None] * 0.5001).all()
        assert (np.abs(codes).max(1) == 127).all()
        parts = (ctypes.addressof(screen), ctypes.addressof(screened), 0, outputs)
        level.estimate(*parts, floors.ctypes.data)
        (exact,) = linear.products()
        assert (np.abs(y - exact) <= distances * lengths[:, None]).all()
        assert (floors <= exact.max(1)).all()
        level.settle(ctypes.addressof(stored), *parts, floors.ctypes.data)
        assert_the_largest_are_there(linear, y)


def usual(rows: int = 1, kind: type[np.generic] = np.float32) -> Linear:
    numbers = np.random.default_rng(3)
    x = numbers.standard_normal((rows, 64), np.float32)
    return Linear(x, (numbers.standard_normal((4096, 64)).astype(kind),))


@pytest.mark.parametrize("rows", [1, 4])
def test_few_are_computed(linear_kernel: Path, rows: int) -> None:
    linear = usual(rows)
    with Wanted(host(), Logits.LARGEST):
        (found,) = session(model_of(linear), linear_kernel).run(None, {"x": linear.x})
    assert np.isfinite(found).sum(1).max() < 100


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "weight"])
def test_what_is_no_number_is_not_left_out(linear_kernel: Path, value: float, where: str) -> None:
    linear = usual(2)
    (linear.x[1] if where == "x" else linear.weights[0][7])[5] = value
    with Wanted(host(), Logits.LARGEST):
        (found,) = session(model_of(linear), linear_kernel).run(None, {"x": linear.x})
    (whole,) = session(model_of(linear), linear_kernel).run(None, {"x": linear.x})
    if where == "x":
        np.testing.assert_array_equal(found, whole)
    else:
        assert not np.isfinite(whole[:, 7]).any()
        np.testing.assert_array_equal(found[:, 7], whole[:, 7])


@pytest.mark.parametrize("size", [0, 1e-30, 1e-8, 1e20, 1e36])
def test_unusual_rows_are_computed_whole(linear_kernel: Path, size: float) -> None:
    linear = usual()
    linear.x[:] *= size
    run = session(model_of(linear), linear_kernel).run
    with Wanted(host(), Logits.LARGEST):
        (found,) = run(None, {"x": linear.x})
    np.testing.assert_array_equal(found, run(None, {"x": linear.x})[0])


def test_no_logits_are_no_numbers(linear_kernel: Path) -> None:
    linear = usual()
    run = session(model_of(linear), linear_kernel).run
    with Wanted(host(), Logits.NONE):
        assert np.isnan(run(None, {"x": linear.x})[0]).all()
    assert_close(linear, run(None, {"x": linear.x}))


def test_other_threads_are_given_all(linear_kernel: Path) -> None:
    linear, found = usual(), []
    run = session(model_of(linear), linear_kernel).run
    with Wanted(host(), Logits.LARGEST):
        other = threading.Thread(target=lambda: found.extend(run(None, {"x": linear.x})))
        other.start()
        other.join()
    assert_close(linear, found)


@pytest.mark.parametrize("kind", [np.float64, np.int8])
def test_weights_for_other_kernels_are_refused(linear_kernel: Path, kind: type[np.generic]) -> None:
    with pytest.raises(Exception, match="float16 or bfloat16"):
        session(model_of(usual(kind=kind)), linear_kernel)


MEMORY = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime as ort
from avl_plugins.cpu.host import host
from avl_plugins.cpu.logits import Wanted
from avl_plugins.logits import Logits

def own():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssFile"))

options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.register_custom_ops_library(sys.argv[2])
before = own()
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
with Wanted(host(), Logits[sys.argv[3]]):
    for _ in range(3):
        session.run(None, {"x": np.ones((1, 1024), np.float32)})
print(own() - before)
"""


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_memory_has_the_codes_and_not_the_weights(
    linear_kernel: Path, tmp_path: Path, kind: type[np.generic]
) -> None:
    if sys.platform != "linux":
        pytest.skip("there is no /proc/self/status")
    numbers = np.random.default_rng(0)
    weight = numbers.standard_normal((32768, 1024), np.float32).astype(kind)
    file = tmp_path / "model.onnx"
    onnx.save(
        model_of(Linear(np.zeros((1, 1024), np.float32), (weight,))),
        file, save_as_external_data=True, location="weights", size_threshold=1024,
    )  # fmt: skip

    def taken(logits: Logits) -> int:
        command = [sys.executable, "-c", MEMORY, file, linear_kernel, logits.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    session_alone = taken(Logits.NONE)
    assert taken(Logits.ALL) - session_alone >= weight.nbytes
    # Beside the codes, what the system maps around the few rows that are computed.
    assert weight.size <= taken(Logits.LARGEST) - session_alone < weight.size * 1.4

"""QuantizedLinear of many rows on AMX, against float64."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from avl_plugins import cpu
from ops.op_models import session
from ops.test_quantized_linear import MOST, Floats, Linear, linears, model_of, plain

LEAST = 64  # rows


def in_bf16(array: Floats) -> NDArray[np.float64]:
    return array.astype(ml_dtypes.bfloat16).astype(np.float64)


def with_rows(linear: Linear, rows: int) -> Linear:
    numbers = np.random.default_rng(rows)
    x = numbers.standard_normal((rows, len(linear.codes)), np.float32)
    x *= np.exp(numbers.uniform(-9, 9, (rows, 1))).astype(np.float32)
    return dataclasses.replace(linear, x=x)


def product(linear: Linear, library: Path, amx: str = "on", threads: int = 1) -> Floats:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cpu.AMX_SWITCH, amx)
        run = session(model_of(linear), library, intra_op_num_threads=threads)
    (found,) = run.run(None, {"x": linear.x})
    return found


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    linear=linears(),
    more=st.one_of(st.integers(0, 70), st.integers(180, 540), st.integers(570, 650)),
)
def test_rows_and_weights_are_multiplied_in_bf16(
    amx_kernel: Path, linear: Linear, more: int
) -> None:
    linear = with_rows(linear, LEAST + more)
    found = product(linear, amx_kernel, threads=2)
    x, weight = in_bf16(linear.x), in_bf16(linear.weight.astype(np.float32))
    # What as many float32 sums may round, and what is taken for 0 as it is below float32's normals.
    error = len(weight) * (2.0**-24 * (np.abs(x) @ np.abs(weight)) + 2.0**-126)
    assert found.dtype == np.float32
    assert (np.abs(found - x @ weight) <= error).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_it_is_nearer_to_float64_than_rounding_to_8_bits(amx_kernel: Path, bits: int) -> None:
    numbers = np.random.default_rng(bits)
    codes = numbers.integers(-MOST[bits], MOST[bits] + 1, (512, 130), np.int8)
    scales = numbers.uniform(0.001, 0.1, (8, 130)).astype(np.float32)
    linear = with_rows(plain(codes, scales, bits), 200)
    wanted = linear.x.astype(np.float64) @ linear.weight

    def error(amx: str) -> float:
        found = product(linear, amx_kernel, amx)
        sizes = np.linalg.norm(wanted, axis=1)
        return float((np.linalg.norm(found - wanted, axis=1) / sizes).max())

    assert error("on") < 0.004
    assert error("on") < 0.8 * error("off")


@pytest.mark.parametrize("bits", [4, 8])
def test_few_rows_are_multiplied_as_without_it(amx_kernel: Path, bits: int) -> None:
    numbers = np.random.default_rng(bits)
    codes = numbers.integers(-MOST[bits], MOST[bits] + 1, (64, 66), np.int8)
    few = plain(codes, np.ones((2, 66), np.float32), bits)
    for rows in (1, LEAST - 1, LEAST):
        linear = with_rows(few, rows)
        found = [product(linear, amx_kernel, amx) for amx in ("on", "off")]
        assert np.array_equal(*found) == (rows < LEAST)


def test_the_kernel_and_those_of_onnx_runtime_take_turns(amx_kernel: Path) -> None:
    """ONNX Runtime multiplies whole numbers on AMX with a configuration of its own."""
    numbers = np.random.default_rng(0)
    codes = numbers.integers(-7, 8, (256, 192), np.int8)
    linear = with_rows(plain(codes, np.ones((4, 192), np.float32), 4), 100)
    alone = product(linear, amx_kernel)
    left = numbers.integers(0, 256, (100, 160), np.uint8)
    right = numbers.integers(-128, 128, (160, 200), np.int8)
    model = model_of(linear)
    graph = model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(right, "right"))
    graph.input.append(helper.make_tensor_value_info("left", TensorProto.UINT8, left.shape))
    for turn in range(3):
        graph.node.append(helper.make_node("MatMulInteger", ["left", "right"], [f"whole.{turn}"]))
        node = graph.node.add()
        node.CopyFrom(graph.node[0])
        node.output[0] = f"again.{turn}"
        for name, kind in (
            (f"whole.{turn}", TensorProto.INT32),
            (node.output[0], TensorProto.FLOAT),
        ):
            graph.output.append(helper.make_tensor_value_info(name, kind, None))
    run = session(
        model,
        amx_kernel,
        intra_op_num_threads=2,
        graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    )
    _, *found = run.run(None, {"x": linear.x, "left": left})
    for whole, again in zip(found[::2], found[1::2], strict=True):
        np.testing.assert_array_equal(whole, left.astype(np.int32) @ right.astype(np.int32))
        np.testing.assert_array_equal(again, alone)


# A stack for signals that is too small for AMX's registers, for which Linux refuses them.
REFUSED = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
given = Stack(ctypes.addressof(memory), 0, len(memory))
assert not ctypes.CDLL(None).sigaltstack(ctypes.byref(given), None)
assert ctypes.CDLL(None).syscall(158, 0x1023, 18)
from avl_plugins.cpu.host import host
print(host().instructions())
"""


def test_where_the_system_refuses_it_it_is_left_out(amx_kernel: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "AVX-512, VNNI\n"

"""MutualAttention: its body, its kernel, and the kernel in bf16, against float64."""

from __future__ import annotations

import functools
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

from avl_plugins.bodies.function import mutual_attention_function
from avl_plugins.schema import DOMAIN, MUTUAL_ATTENTION, VERSION
from ops.agreement import scale_of
from ops.op_models import session
from ops.test_prompt_amx import IN_BF16, LEAST, in_bf16

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
SETTINGS = {"deadline": None, "derandomize": True, "database": None}


@functools.cache
def model_of(head_dim: int) -> onnx.ModelProto:
    shape = ["B", "S", "H", head_dim]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name in ("q", "k", "v", "out")
    }
    node = helper.make_node(
        *(MUTUAL_ATTENTION.name, ["q", "k", "v"], ["out"]),
        domain=DOMAIN,
        scale=scale_of(head_dim),
    )
    inputs = [values[name] for name in ("q", "k", "v")]
    model = helper.make_model(
        helper.make_graph([node], "mutual", inputs, [values["out"]]),
        functions=[mutual_attention_function()],
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=11,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@functools.cache
def opened(head_dim: int, kernels: Path | None, bf16: bool = False) -> ort.InferenceSession:
    entries = IN_BF16 if bf16 else {}
    return session(model_of(head_dim), kernels, entries, intra_op_num_threads=2)


def run(arrays: dict[str, Floats], kernels: Path | None, bf16: bool = False) -> Floats:
    (out,) = opened(arrays["q"].shape[3], kernels, bf16).run(None, arrays)
    assert out.dtype == np.float32
    return out


def attention(q: Doubles, k: Doubles, v: Doubles) -> tuple[Doubles, Doubles]:
    """What it is in float64, and the same of the values' sizes."""
    q, k, v = (rows.swapaxes(1, 2) for rows in (q, k, v))
    scores = q @ k.swapaxes(2, 3)
    weights = np.exp(scores - scores.max(axis=3, keepdims=True))
    weights /= weights.sum(axis=3, keepdims=True)
    return (weights @ v).swapaxes(1, 2), (weights @ np.abs(v)).swapaxes(1, 2)


def plain(arrays: dict[str, Floats]) -> Doubles:
    q, k, v = (arrays[name].astype(np.float64) for name in "qkv")
    return attention(q * scale_of(q.shape[3]), k, v)[0]


@st.composite
def pictures(draw: Any) -> dict[str, Floats]:
    rows = draw(st.one_of(st.integers(1, 80), st.sampled_from((127, 128, 257, 577))))
    width = draw(st.sampled_from((8, 20, 64, 72, 80, 128)))
    shape = (draw(st.integers(1, 3)), rows, draw(st.integers(1, 3)), width)
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return {name: numbers.standard_normal(shape, np.float32) for name in "qkv"}


@settings(max_examples=30, **SETTINGS)
@given(arrays=pictures())
def test_the_body_agrees_with_float64(arrays: dict[str, Floats]) -> None:
    np.testing.assert_allclose(run(arrays, None), plain(arrays), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, **SETTINGS)
@given(arrays=pictures())
def test_in_bf16_it_is_as_near_as_rounding_lets_it(
    amx_kernel: Path, arrays: dict[str, Floats]
) -> None:
    found, rows = run(arrays, amx_kernel, bf16=True), arrays["q"].shape[1]
    if rows < LEAST:
        np.testing.assert_allclose(found, plain(arrays), rtol=1e-5, atol=1e-5)
        return
    unit = np.float32(scale_of(arrays["q"].shape[3])) * np.float32(np.log2(np.e))
    q, k, v = in_bf16(arrays["q"] * unit), in_bf16(arrays["k"]), in_bf16(arrays["v"])
    wanted, sizes = attention(q * np.log(2), k, v)
    assert (np.abs(found - wanted) <= (2.0**-8 + 3e-4) * sizes).all()


def test_in_float32_it_is_the_body(kernels: Path) -> None:
    """Which kernels of ours are not faster than."""
    numbers = np.random.default_rng(0)
    arrays = {name: numbers.standard_normal((1, 70, 2, 64), np.float32) for name in "qkv"}
    np.testing.assert_array_equal(run(arrays, kernels), run(arrays, None))


def test_shapes_that_differ_are_refused(amx_kernel: Path) -> None:
    arrays = {name: np.ones((1, 3 + (name == "v"), 2, 8), np.float32) for name in "qkv"}
    with pytest.raises(Exception, match="queries, keys and values of the same shape"):
        run(arrays, amx_kernel, bf16=True)

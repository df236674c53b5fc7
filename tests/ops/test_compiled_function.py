"""The body for compilers on stock ONNX Runtime, against the reference."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from avl_plugins.bodies.compiled_function import compiled_attention_function
from avl_plugins.bodies.function import attention_node_attributes
from avl_plugins.schema import SPLIT_CACHE_ATTENTION
from ops.agreement import (
    assert_agrees,
    assert_agrees_to_rounding,
    scale_of,
)
from ops.op_models import Arrays, attention_inputs, op_model, run, session

GROUPS = (1, 2, 4)


@functools.cache
def compiled_session(
    heads: int, kv_heads: int, head_dim: int, element: int
) -> ort.InferenceSession:
    model = op_model(
        SPLIT_CACHE_ATTENTION,
        [compiled_attention_function(23, (heads, kv_heads))],
        {"H": heads, "Hkv": kv_heads, "D": head_dim},
        attention_node_attributes(scale_of(head_dim)),
        element=element,
    )
    return session(onnx.inliner.inline_local_functions(model))


def outputs_of(arrays: Arrays, element: int) -> list[np.ndarray[Any, Any]]:
    heads, kv_heads = arrays["q"].shape[1], arrays["k_new"].shape[1]
    return run(compiled_session(heads, kv_heads, arrays["q"].shape[3], element), arrays)


@pytest.mark.parametrize("group", GROUPS)
def test_agrees_with_the_reference(group: int) -> None:
    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(arrays=st.sampled_from((32, 80)).flatmap(lambda d: attention_inputs(group, d)))
    def check(arrays: Arrays) -> None:
        outputs = outputs_of(arrays, TensorProto.FLOAT)
        assert_agrees(arrays, outputs)

    check()


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    arrays=st.sampled_from(GROUPS).flatmap(
        lambda group: attention_inputs(group, 64, TensorProto.FLOAT16, largest=200)
    )
)
def test_half_precision_agrees_to_rounding(arrays: Arrays) -> None:
    outputs = outputs_of(arrays, TensorProto.FLOAT16)
    assert_agrees_to_rounding(arrays, outputs, 2.0**-11)


def test_it_never_transposes_keys_and_multiplies_no_float32_matrices() -> None:
    """What it is for: see its module."""
    function = compiled_attention_function(23, (4, 2))
    made_by = {output: node for node in function.node for output in node.output}
    keys = {f"k_{place}" for place in ("active", "parked", "new")}
    transposed = {node.input[0] for node in function.node if node.op_type == "Transpose"}
    assert transposed.isdisjoint(keys)
    products = [node for node in function.node if node.op_type == "MatMul"]
    assert {node.input[0] for node in products} >= keys
    casts = {node.output[0] for node in function.node if node.op_type == "Cast"}
    assert all(casts.isdisjoint(node.input) for node in products)
    assert made_by["mass"].op_type == "ReduceSum"

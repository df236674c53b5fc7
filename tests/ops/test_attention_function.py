"""The function body of SplitCacheAttention on stock ONNX Runtime against the reference."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from avl_plugins.bodies.function import attention_node_attributes, split_cache_attention_functions
from avl_plugins.schema import SPLIT_CACHE_ATTENTION
from ops.agreement import (
    assert_agrees,
    assert_agrees_to_rounding,
    expected,
    scale_of,
)
from ops.op_models import Arrays, attention_inputs, op_model, run, session

GROUPS = (1, 2, 4, 8)
HEAD_DIMS = (32, 64, 80, 96, 128)


@functools.cache
def attention_model(
    heads: int,
    kv_heads: int,
    head_dim: int,
    element: int = TensorProto.FLOAT,
    constant_heads: bool = False,
    layers: int = 1,
) -> onnx.ModelProto:
    return op_model(
        SPLIT_CACHE_ATTENTION,
        split_cache_attention_functions(heads=(heads, kv_heads) if constant_heads else None),
        {"H": heads, "Hkv": kv_heads, "D": head_dim},
        attention_node_attributes(scale_of(head_dim)),
        element=element,
        layers=layers,
        shared=("row_weights",) if layers > 1 else (),
    )


@functools.cache
def attention_session(*key: Any) -> ort.InferenceSession:
    return session(attention_model(*key))


def key_of(arrays: Arrays) -> tuple[int, int, int]:
    return arrays["q"].shape[1], arrays["k_new"].shape[1], arrays["q"].shape[3]


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("group", GROUPS)
def test_agrees_with_the_reference(group: int, head_dim: int) -> None:
    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(arrays=attention_inputs(group, head_dim), constant_heads=st.booleans())
    def check(arrays: Arrays, constant_heads: bool) -> None:
        key = (*key_of(arrays), TensorProto.FLOAT, constant_heads)
        outputs = run(attention_session(*key), arrays)
        assert_agrees(arrays, outputs)

    check()


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(arrays=st.sampled_from(GROUPS).flatmap(lambda g: attention_inputs(g, 64, largest=400)))
def test_agrees_on_long_caches(arrays: Arrays) -> None:
    outputs = run(attention_session(*key_of(arrays)), arrays)
    for found, wanted in zip(outputs, expected(arrays), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", GROUPS)
def test_half_precision_agrees_to_rounding(group: int) -> None:
    @settings(max_examples=10, deadline=None, derandomize=True, database=None)
    @given(
        arrays=st.sampled_from(HEAD_DIMS).flatmap(
            lambda d: attention_inputs(group, d, TensorProto.FLOAT16)
        )
    )
    def check(arrays: Arrays) -> None:
        outputs = run(attention_session(*key_of(arrays), TensorProto.FLOAT16), arrays)
        assert outputs[0].dtype == np.float16
        assert_agrees_to_rounding(arrays, outputs, 2.0**-11)

    check()


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(
    arrays=st.sampled_from(GROUPS).flatmap(
        lambda group: attention_inputs(group, 32, TensorProto.BFLOAT16)
    )
)
def test_bfloat16_agrees_to_rounding(arrays: Arrays) -> None:
    """In onnx's own evaluator: ONNX Runtime has no bfloat16 products on a CPU."""
    model = onnx.inliner.inline_local_functions(
        attention_model(*key_of(arrays), TensorProto.BFLOAT16)
    )
    outputs = ReferenceEvaluator(model).run(None, {f"{n}.0": a for n, a in arrays.items()})
    assert outputs[0].dtype == arrays["q"].dtype
    assert_agrees_to_rounding(arrays, outputs, 2.0**-8)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(arrays=st.sampled_from(GROUPS).flatmap(lambda group: attention_inputs(group, 32)))
def test_inlined_and_unoptimised_graphs_agree(arrays: Arrays) -> None:
    model = attention_model(*key_of(arrays))
    inlined = onnx.inliner.inline_local_functions(model)
    assert not inlined.functions
    assert {node.domain for node in inlined.graph.node} == {""}
    off = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = run(attention_session(*key_of(arrays)), arrays)
    for variant in (session(inlined), session(model, graph_optimization_level=off)):
        for found, value in zip(run(variant, arrays), wanted, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


class Recorded(OpRun):
    """Attention, which keeps the masks that it was given."""

    op_domain = ""
    masks: ClassVar[list[np.ndarray[Any, Any]]] = []

    def _run(self, *inputs: Any, **_: Any) -> tuple[Any]:
        query, _, values, seen = inputs
        self.masks.append(seen)
        return (np.zeros((*query.shape[:3], values.shape[3]), query.dtype),)


Recorded.__name__ = "Attention"


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(arrays=st.sampled_from(GROUPS).flatmap(lambda group: attention_inputs(group, 32)))
def test_no_row_of_a_prompt_is_wholly_masked(arrays: Arrays) -> None:
    """What becomes of such a row differs: NaN in ONNX Runtime 1.23, zeros in 1.31."""
    model = onnx.inliner.inline_local_functions(attention_model(*key_of(arrays)))
    Recorded.masks.clear()
    evaluator = ReferenceEvaluator(model, new_ops=[Recorded])
    evaluator.run(None, {f"{name}.0": array for name, array in arrays.items()})
    rows = arrays["q"].shape[2]
    assert len(Recorded.masks) == int(rows > 1)
    for seen in Recorded.masks:
        assert seen.dtype == np.bool_ and seen.shape[2] == rows
        assert seen.any(axis=-1).all()


def test_masses_of_a_row_sum_to_its_weight() -> None:
    rng = np.random.default_rng(0)
    arrays: Arrays = {
        "q": rng.standard_normal((2, 4, 3, 32)).astype(np.float32),
        "row_weights": np.array([[[0, 0, 1], [1, 0, 1]]] * 2, np.float32),
        "active_len": np.array([2, 5]),
        "parked_len": np.array([4, 0]),
    }
    for name, rows in (("active", 5), ("parked", 4), ("new", 3)):
        for cache in ("k", "v"):
            arrays[f"{cache}_{name}"] = rng.standard_normal((2, 2, rows, 32)).astype(np.float32)
    masses = run(attention_session(4, 2, 32), arrays)[1:]
    totals = np.concatenate(masses, axis=3).sum(axis=3)
    np.testing.assert_allclose(totals[:, :, 0], 1, rtol=1e-6)
    np.testing.assert_allclose(totals[:, :, 1], 2, rtol=1e-6)


def test_a_step_takes_few_nodes(tmp_path: Path) -> None:
    layers = 6
    for node in _choices(tmp_path, layers, None):
        step, prompt = (branch.node for branch in _branches(node))
        (inner,) = (node for node in step if node.op_type == "If")
        ordinary, refresh = (branch.node for branch in _branches(inner))
        assert len(step) <= 4
        assert len(ordinary) <= 27
        assert len(refresh) <= 30
        kinds = [node.op_type for branch in (ordinary, refresh, prompt) for node in branch]
        assert "Transpose" not in kinds  # every transpose of K is fused into its product
        assert "Cast" not in kinds  # float32 needs none
        assert kinds.count("Attention") == 1


def test_a_branch_is_one_node_where_there_is_a_kernel(tmp_path: Path, kernels: Path) -> None:
    for node in _choices(tmp_path, 6, kernels):
        kinds = [[node.op_type for node in branch.node] for branch in _branches(node)]
        assert kinds == [["SplitCacheStep"], ["SplitCachePrompt"]]


def _choices(folder: Path, layers: int, kernels: Path | None) -> list[onnx.NodeProto]:
    """The layers' choices between a step and a prompt, in the graph ONNX Runtime makes of them.

    Beside them there is what chooses, found once.
    """
    path = folder / "optimised.onnx"
    model = attention_model(6, 3, 32, TensorProto.FLOAT, True, layers)
    session(model, kernels, optimized_model_filepath=str(path))
    nodes = list(onnx.load(path).graph.node)
    assert [node.op_type for node in nodes] == ["Shape", "Equal", *["If"] * layers]
    return nodes[2:]


def _branches(node: onnx.NodeProto) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    found = {attribute.name: attribute.g for attribute in node.attribute}
    return found["then_branch"], found["else_branch"]


def test_a_model_may_have_a_later_opset() -> None:
    functions = split_cache_attention_functions(24)
    attributes = attention_node_attributes(0.25)
    model = op_model(SPLIT_CACHE_ATTENTION, functions, {}, attributes, opset=24)
    assert model.functions[0].opset_import[0].version == 24
    session(model)

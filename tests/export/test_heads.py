"""Which nodes between linears and attention become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from avl_export.graph.heads import join_heads
from avl_export.graph.linears import join_linears
from avl_plugins.bodies.function import split_cache_attention_functions
from avl_plugins.schema import DOMAIN, SPLIT_CACHE_ATTENTION
from ops.op_models import session
from support.linears import types_of

SIZE = 16  # of the one head
APART = [0, 2, 1, 3]
INPUTS = {
    "x": ("rows", SIZE),
    "cos": ("B", "S", SIZE // 2),
    "sin": ("B", "S", SIZE // 2),
    "k_active": ("B", 1, "A", SIZE),
    "v_active": ("B", 1, "A", SIZE),
    "active_len": ("B",),
    "k_parked": ("B", 1, "P", SIZE),
    "v_parked": ("B", 1, "P", SIZE),
    "parked_len": ("B",),
    "row_weights": ("B", "R", "S"),
}


def model_of(
    normed: Collection[str] = (),
    *,
    norm_at: int = 1,
    turned: Collection[str] = ("q", "k"),
    shown: tuple[str, ...] = (),
    shape: tuple[int, ...] = (-1, SIZE),
) -> onnx.ModelProto:
    """Rows through linears, RoPE, attention and a linear, as they are traced.

    `normed` and `turned` say which of q, k and v are; a norm is before or behind the Transpose.
    `shown` values are outputs too. `shape`: of what attention gives as rows.
    """
    numbers = np.random.default_rng(0)
    tensors = {"rest": np.array([-1]), "size": np.array([SIZE]), "rows": np.array(shape)}
    nodes = [
        helper.make_node("Shape", ["cos"], ["batch"], start=0, end=1),
        helper.make_node("Shape", ["cos"], ["new"], start=1, end=2),
        helper.make_node("Concat", ["batch", "new", "rest", "size"], ["apart"], axis=0),
    ]
    for x in ("q", "k", "v", "o"):
        tensors[f"{x}_weight"] = numbers.standard_normal((SIZE, SIZE), np.float32)
        tensors[f"{x}_norm"] = numbers.standard_normal(SIZE, np.float32)
    for x in ("q", "k", "v"):
        steps = [("Reshape", ["apart"], {}), ("Transpose", [], {"perm": APART})]
        if x in normed:
            norm = {"epsilon": 1e-6, "axis": -1}
            steps.insert(norm_at, ("RMSNormalization", [f"{x}_norm"], norm))
        if x in turned:
            steps.append(("RotaryEmbedding", ["cos", "sin"], {}))
        nodes.append(helper.make_node("Gemm", ["x", f"{x}_weight"], [f"{x}_0"], transB=1))
        for at, (kind, others, attributes) in enumerate(steps, 1):
            made = f"{x}_{at}" if at < len(steps) else x
            nodes.append(helper.make_node(kind, [f"{x}_{at - 1}", *others], [made], **attributes))
    attention = SPLIT_CACHE_ATTENTION
    names = [[v.name for v in values] for values in (attention.inputs, attention.outputs)]
    names[0][:3] = ["q", "k", "v"]
    nodes += [
        helper.make_node(attention.name, *names, domain=DOMAIN, scale=0.5),
        helper.make_node("Transpose", ["out"], ["out_apart"], perm=APART),
        helper.make_node("Reshape", ["out_apart", "rows"], ["out_rows"]),
        helper.make_node("Reshape", ["out_rows", "flat"], ["out_flat"]),
        helper.make_node("Gemm", ["out_rows", "o_weight"], ["y"], transB=1),
    ]
    if len(shape) == 2:
        del nodes[-2]
    else:
        nodes[-1].input[0] = "out_flat"
        tensors["flat"] = np.array([-1, SIZE])
    used = {name for node in nodes for name in node.input}
    kinds = {"active_len": TensorProto.INT64, "parked_len": TensorProto.INT64}
    outputs = {"y": ("rows", SIZE), "k": ("B", 1, "S", SIZE)}
    outputs |= dict.fromkeys(shown, ("B", "h", "s", SIZE))
    graph = helper.make_graph(
        nodes,
        "layer",
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in INPUTS.items()
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in outputs.items()
        ],
        [numpy_helper.from_array(array, n) for n, array in tensors.items() if n in used],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    functions = split_cache_attention_functions(23, (1, 1))
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=11)


def joined(model: onnx.ModelProto) -> onnx.ModelProto:
    found = ir.from_proto(model)
    join_linears(found)
    join_heads(found)
    proto = ir.to_proto(found)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def assert_same(found: onnx.ModelProto, wanted: onnx.ModelProto) -> None:
    numbers = np.random.default_rng(1)
    sizes = {"rows": 6, "B": 2, "S": 3, "A": 4, "P": 5, "R": 1}
    fed = {
        name: numbers.standard_normal([sizes.get(n, n) for n in shape]).astype(np.float32)
        for name, shape in INPUTS.items()
    }
    fed |= {"active_len": np.array([4, 2]), "parked_len": np.array([0, 5])}
    results = [session(one).run(None, fed) for one in (found, wanted)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("plain", "op"),
    [
        pytest.param(model_of(), "RotaryHeads", id="turned"),
        pytest.param(model_of("qk"), "NormedRotaryHeads", id="normed"),
        pytest.param(model_of("qk", norm_at=2), "NormedRotaryHeads", id="normed-apart"),
    ],
)
def test_what_makes_heads_is_one_node(plain: onnx.ModelProto, op: str) -> None:
    found = joined(plain)
    kinds = ["Linear3", op, SPLIT_CACHE_ATTENTION.name, "JoinedHeads", "Linear"]
    assert types_of(found) == Counter(kinds)
    assert_same(found, plain)


@pytest.mark.parametrize(
    "plain",
    [
        pytest.param(model_of("qkv"), id="values-are-normed"),
        pytest.param(model_of("q"), id="keys-are-not-normed"),
        pytest.param(model_of(turned="q"), id="keys-are-not-turned"),
        pytest.param(model_of(turned=""), id="nothing-is-turned"),
        pytest.param(model_of(shown=("q_2",)), id="a-part-is-an-output"),
    ],
)
def test_other_heads_stay(plain: onnx.ModelProto) -> None:
    found = joined(plain)
    kinds = types_of(found)
    assert not kinds["RotaryHeads"] and not kinds["NormedRotaryHeads"]
    assert kinds["RotaryEmbedding"] == types_of(plain)["RotaryEmbedding"]
    assert_same(found, plain)


def test_rows_of_another_shape_stay() -> None:
    plain = model_of(shape=(2, 3, SIZE))
    found = joined(plain)
    assert types_of(found)["RotaryHeads"] == 1 and not types_of(found)["JoinedHeads"]
    assert_same(found, plain)


def test_a_decoder_has_no_small_nodes_around_attention(tiny_package: Path) -> None:
    for file in tiny_package.glob("decoder.*.onnx"):
        kinds = types_of(onnx.load(file, load_external_data=False))
        layers = kinds["RotaryHeads"]
        assert layers == kinds["JoinedHeads"] and layers
        assert not kinds["Transpose"] and not kinds["RotaryEmbedding"]

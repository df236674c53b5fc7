"""What the builder is given computes what the package's graph does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from avl_plugins.schema import DOMAIN, PLUGIN_ATTRIBUTES
from avl_runtime.engines.graphs import Prepared, prepare
from avl_runtime.package.engine_sets import ROW_BLOCK
from avl_runtime.package.package import Package, load_package

Arrays = dict[str, np.ndarray[Any, Any]]
SEGMENT = "decoder.0.onnx"


@pytest.fixture(scope="session")
def package(tiny_package: Path) -> Package:
    return load_package(tiny_package)


def prepared(package: Package, graph: str = SEGMENT, plugins: bool = False) -> Prepared:
    return prepare(package.read(graph), package.manifest.dims, plugins)


def session(package: Package, model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(package.weights_folder)
    )
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def inputs(package: Package, rows: int, active: int, parked: int) -> Arrays:
    """Random ones for the first segment, with caches of these rows of which some are unused."""
    rng = np.random.default_rng(rows)
    dims = package.manifest.dims
    arrays: Arrays = {
        "hidden": rng.standard_normal((2, rows, dims.hidden_size)).astype(np.float32),
        "position_ids": np.tile(np.arange(7, 7 + rows), (2, 1)),
        "row_weights": rng.random((2, 2, rows)).astype(np.float32),
    }
    for layer in range(package.manifest.segments[0].last_layer):
        for place, size in (("active", active), ("parked", parked)):
            arrays[f"{place}_len.{layer}"] = np.array([size - 3, 0])
            for kind in "kv":
                shape = (2, dims.num_kv_heads, size, dims.head_dim)
                rows_of = rng.standard_normal(shape).astype(np.float32)
                arrays[f"{kind}_{place}.{layer}"] = rows_of
    return arrays


@pytest.mark.parametrize("rows", [1, 5])
def test_the_same_outputs_with_blocked_rows(package: Package, rows: int) -> None:
    """The independent form is the package's own graph, which tests compare with transformers."""
    ready = prepared(package)
    given = inputs(package, rows, 2 * ROW_BLOCK, ROW_BLOCK)
    original = session(package, package.read(SEGMENT))
    blocked = {
        name: array.reshape(*array.shape[:2], -1, ROW_BLOCK, array.shape[3])
        if name.startswith(("k_", "v_"))
        else array
        for name, array in given.items()
    }
    names = [output.name for output in original.get_outputs()]
    wanted = original.run(names, given)
    found = session(package, ready.model.SerializeToString()).run(names, blocked)
    for name, one, other in zip(names, found, wanted, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=name)


def test_without_plugins_only_standard_operators_are_left(package: Package) -> None:
    ready = prepared(package)
    assert not ready.model.functions
    assert {node.domain for node in ready.model.graph.node} == {""}
    assert ready.row_block == ROW_BLOCK
    assert ready.attentions == ()
    assert ready.inputs["k_active.1"] == ("batch", 3, "active_blocks", ROW_BLOCK, 32)
    assert ready.inputs["parked_len.0"] == ("batch",)
    onnx.checker.check_model(_without_external(ready.model))


def test_with_plugins_nodes_name_them(package: Package) -> None:
    ready = prepared(package, plugins=True)
    nodes = [node for node in ready.model.graph.node if node.domain == DOMAIN]
    assert len(nodes) == len(ready.attentions) == 2
    for node in nodes:
        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert node.op_type == "SplitCacheAttention"
        assert found["plugin_namespace"].decode() == PLUGIN_ATTRIBUTES["plugin_namespace"]
        assert found["plugin_version"].decode() == PLUGIN_ATTRIBUTES["plugin_version"]
        assert found["aot"] == PLUGIN_ATTRIBUTES["aot"]
        assert all(node.input)
        assert all(node.output)
    assert ready.row_block == 1
    assert ready.inputs["k_active.1"] == ("batch", 3, "active", 32)


def test_weight_bytes_are_those_of_the_computing_precision(package: Package) -> None:
    """avl-tiny is stored in fp16 and computes in fp32 here."""
    graph = onnx.load_model_from_string(package.read(SEGMENT)).graph
    stored = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    numbers = sum(int(np.prod(tensor.dims)) for tensor in stored)
    ready = prepared(package)
    assert numbers * 4 <= ready.weight_bytes <= numbers * 4 + 2000  # and small constants
    assert ready.int4_bytes == 0


def test_a_picture_encoder_has_standard_nodes_alone(package: Package) -> None:
    ready = prepared(package, "vision.onnx")
    before = onnx.load_model_from_string(package.read("vision.onnx")).graph
    assert not ready.model.functions
    assert {node.domain for node in ready.model.graph.node} == {""}
    assert ready.operators["Gemm"] == 26  # six a layer, and the projector's
    assert ready.model.graph.input == before.input
    assert ready.model.graph.output == before.output
    assert ready.model.graph.initializer == before.initializer
    assert ready.row_block == 1
    assert ready.operators["Attention"] == 4
    assert ready.lengths == ()


def _without_external(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights are inputs, as the checker would read them from the wrong folder."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = []
    for tensor in copy.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            copy.graph.input.append(info)
        else:
            kept.append(tensor)
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    return copy

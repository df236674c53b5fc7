"""Decoders whose graphs no engine runs yet, checked, and built as engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from avl_plugins.graph_io import kind_of
from avl_runtime.engines.engine import write_engine
from avl_runtime.engines.graphs import prepare
from avl_runtime.engines.lint import lint
from avl_runtime.engines.network import listing, load_toolkit, parse
from avl_runtime.engines.profiles import segment_profiles
from avl_runtime.package.engine_sets import ROW_BLOCK, Limits
from avl_runtime.package.package import Package
from families.support import Case, Made

LIMITS = Limits(decode_rows=1, prompt_rows=32, cache_rows=64, batch=1)
TARGETS = (120,)
ATTENTIONS = {"SplitCacheAttention", "BlockCacheAttention", "WindowCacheAttention"}
BLOCKS = {"active": 3, "parked": 1}  # of cached rows
NEWEST = 40  # position of the first new row

Arrays = dict[str, np.ndarray[Any, Any]]


class EngineTests:
    """What must hold of the package of a family's first case."""

    cases: ClassVar[Sequence[Case]]

    def test_what_builders_are_given_computes_the_same(self, made: Made) -> None:
        """As the package's graphs, which a runtime without kernels of ours takes."""
        package = made.model.package
        for file in package.manifest.graphs:
            onnx.checker.check_model(weights_given(package.read(file)), full_check=True)
        for segment in package.manifest.segments:
            data = package.read(segment.file)
            plain = session(package, data)
            ready = prepare(data, package.manifest.dims, plugins=False)
            built = session(package, ready.model.SerializeToString())
            names = [output.name for output in plain.get_outputs()]
            for rows in (1, 6):
                given = inputs(plain, rows)
                blocked = {
                    one.name: given[one.name].reshape(blocked_shape(given[one.name].shape, one))
                    for one in built.get_inputs()
                }
                wanted = plain.run(names, given)
                for name, one, other in zip(names, built.run(names, blocked), wanted, strict=True):
                    assert one.shape == other.shape
                    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=name)

    def test_decoders_become_engines(self, made: Made, tmp_path: Path) -> None:
        """For steps and for prompts, whose profile has one row among its sizes."""
        pytest.importorskip("tensorrt_rtx")
        package, toolkit = made.model.package, load_toolkit("tensorrt-rtx")
        manifest = package.manifest
        for segment in manifest.segments:
            data = package.read(segment.file)
            nodes = Counter(node.op_type for node in onnx.load_model_from_string(data).graph.node)
            prepared = prepare(data, manifest.dims, plugins=False)
            near = str(package.weights_folder / segment.file)
            parsed, unsupported = parse(toolkit, prepared.model, near)
            assert not unsupported
            found = listing(toolkit, parsed.network)
            lint(segment.file, found, list(prepared.inputs))
            kinds = Counter(layer.kind for layer in found.layers)
            attentions, experts = sum(nodes[name] for name in ATTENTIONS), nodes["SparseExperts"]
            assert kinds["SOFTMAX"] == attentions + nodes["Softmax"] > 0
            # A loop over a prompt's chunks, and one over experts.
            assert kinds["TRIP_LIMIT"] == nodes["GatedDeltaRule"] + experts
            _, prompt = segment_profiles(prepared.inputs, LIMITS, ROW_BLOCK, 1)
            least, _, most = prompt.shapes["hidden"]
            assert (least[1], most[1]) == (1, LIMITS.prompt_rows)
            out = tmp_path / segment.file
            built = write_engine(toolkit, parsed, [prompt], TARGETS, None, None, out)
            assert built.size > prepared.weight_bytes


def session(package: Package, data: bytes) -> ort.InferenceSession:
    """Without a kernel of ours."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(package.weights_folder)
    )
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def inputs(graph: ort.InferenceSession, rows: int) -> Arrays:
    """Random ones of two sequences; a step's active rows are within any window."""
    draw = np.random.default_rng(rows)
    arrays: Arrays = {}
    for one in graph.get_inputs():
        kind, shape = kind_of(one.name), [size_of(size, rows) for size in one.shape]
        if kind in ("position_ids", "row_positions"):
            made = np.broadcast_to(NEWEST + np.arange(rows), shape)
        elif kind == "active_positions":
            oldest = NEWEST - 4 if rows == 1 else 0
            made = draw.integers(oldest, NEWEST, shape)
        elif kind == "row_ends":  # the second to the fourth row are a block
            ends = np.arange(rows) + 1
            ends[1:4] = min(rows, 4)
            made = np.broadcast_to(ends, shape)
        elif kind.endswith("_len"):
            made = np.array([ROW_BLOCK - 1, 0])
        elif one.type == "tensor(float)":
            made = draw.standard_normal(shape)
        else:
            raise AssertionError(one.name)
        arrays[one.name] = made.astype(np.float32 if one.type == "tensor(float)" else np.int64)
    return arrays


def size_of(size: int | str, rows: int) -> int:
    """The rows of caches are `active_3` or `parked_3` in packages."""
    if isinstance(size, int):
        return size
    cached = BLOCKS.get(size.partition("_")[0])
    return {"seq": rows}.get(size, 2) if cached is None else cached * ROW_BLOCK


def blocked_shape(shape: tuple[int, ...], wanted: ort.NodeArg) -> list[int]:
    """`shape`, with cached rows in blocks where `wanted` has one axis more."""
    if len(shape) == len(wanted.shape):
        return list(shape)
    at = wanted.shape.index(ROW_BLOCK, 1)
    return [*shape[: at - 1], -1, ROW_BLOCK, *shape[at:]]


def weights_given(data: bytes) -> onnx.ModelProto:
    """The model with its weights as inputs, since they lie where the checker does not look."""
    model = onnx.load_model_from_string(data)
    held = [
        one for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL
    ]
    for one in held:
        info = onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims)
        model.graph.input.append(info)
        model.graph.initializer.remove(one)
    return model

"""Every node of ours becomes its plugin where TensorRT parses what avl-build hands it.

TensorRT cannot be installed without a GPU. `tensorrt_plugins.parser` does what its parser does, on
tensorrt-lean's registry; the shapes that reach the plugins are those that TensorRT-RTX's parser,
which is built of the same source, finds for the same graph.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from avl_export.cli import main as export
from avl_plugins.schema import RESTORED_CACHE_ATTENTION, SPLIT_CACHE_ATTENTION, Op
from avl_runtime.engines.graphs import prepare
from avl_runtime.engines.jobs import Job
from avl_runtime.engines.network import Toolkit, load_toolkit, parse
from avl_runtime.package.engine_sets import Limits
from avl_runtime.package.package import Package, load_package
from engines.wide import write_wide
from tensorrt_plugins import parsing

pytest.importorskip("tensorrt_rtx")

Remote = Callable[..., Any]
Shapes = dict[str, tuple[int, ...]]

RELEASES = [(10, 9), (10, 10), (10, 15)]
SEGMENTS = ["decoder.0.onnx", "decoder.1.onnx"]
SIZES = {"batch": 2, "seq": 5, "active": 7, "parked": 11, "unlike": 1}
TYPES = {TensorProto.FLOAT16: "HALF", TensorProto.BFLOAT16: "BF16", TensorProto.FLOAT: "FLOAT"}


@pytest.fixture(scope="module")
def toolkit() -> Toolkit:
    return load_toolkit("tensorrt-rtx")


@pytest.fixture(scope="module", params=["tiny-fp16", "wide-bf16", "restored-fp16"])
def package(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Package:
    """avl-tiny, whose heads of 32 no kernel serves, and a LLaVA whose heads of 128 they do.

    And avl-tiny exported with --restore.
    """
    folder = tmp_path_factory.mktemp("package")
    name, _, dtype = request.param.partition("-")
    checkpoint = tiny_checkpoint
    if name == "wide":
        checkpoint = write_wide(folder / "checkpoint", layers=3, hidden=512)
    out, options = folder / "model.avl", ["--dtype", dtype, "--no-check"]
    options += ["--restore"] * (name == "restored")
    assert export(["--model", str(checkpoint), "--out", str(out), *options]) == 0
    return load_package(out)


def job(folder: Path, graph: str) -> str:
    """As avl-build gives it to its worker for TensorRT with plugins."""
    return Job(
        package=str(folder),
        graph=graph,
        backend="tensorrt",
        targets=(89,),
        plugins=True,
        limits=Limits(8, 64, 128, 2),
        out=None,
        timing_cache=None,
    ).to_json()


def builtins(toolkit: Toolkit, model: onnx.ModelProto) -> frozenset[str]:
    """Operators of the graph that TensorRT's parser has an importer for."""
    _, network = toolkit.loaders.create_network(strongly_typed=True)
    real = toolkit.trt.OnnxParser(network, toolkit.logger)
    names = {node.op_type for node in model.graph.node}
    return frozenset(name for name in names if real.supports_operator(name))


def shapes_at_plugins(toolkit: Toolkit, package: Package, graph: str) -> tuple[Shapes, Any]:
    """Shapes and types of what the plugins of a segment read, as a real parser finds them.

    TensorRT-RTX takes no plugins: in their place is what passes the queries through, which have the
    shape of the result.
    """
    model = prepare(package.read(graph), package.manifest.dims, plugins=True).model
    read, masses = set[str](), set[str]()
    for node in model.graph.node:
        if node.domain == SPLIT_CACHE_ATTENTION.domain:
            read |= set(node.input)
            masses |= set(node.output[1:])
            stand_in = helper.make_node("Identity", node.input[:1], node.output[:1])
            node.CopyFrom(stand_in)
    constants = {one.name: one for one in model.graph.initializer if one.name in read}
    outputs = [value for value in model.graph.output if value.name not in masses]
    del model.graph.output[:], model.functions[:]
    model.graph.output.extend(outputs)
    parsed, unsupported = parse(toolkit, model, str(package.weights_folder / graph))
    assert unsupported == []
    network = parsed.network
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        tensors += [layer.get_output(i) for i in range(layer.num_outputs)]
    found = {one.name: one for one in tensors if one.name in read}
    assert set(found) == read - set(constants)
    shapes = {name: tuple(one.shape) for name, one in found.items()}
    types = {name: one.dtype.name for name, one in found.items()}
    shapes |= {name: tuple(one.dims) for name, one in constants.items()}
    return shapes, types | {name: TYPES[one.data_type] for name, one in constants.items()}


def declared(model: onnx.ModelProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape that the graph itself declares for its outputs, at SIZES."""
    found = {}
    for value in model.graph.output:
        kind = value.type.tensor_type
        shape = tuple(SIZES.get(dim.dim_param, dim.dim_value) for dim in kind.shape.dim)
        found[value.name] = (TYPES[kind.elem_type], shape)
    return found


def with_sizes(op: Op, name: str, shape: tuple[int, ...], place: int) -> tuple[int, ...]:
    """A shape with the sizes of SIZES for those that are open, by the schema's dimensions."""
    letters = {"B": "batch", "S": "seq", "A": "active", "P": "parked", "F": "unlike"}
    pattern = op.inputs[place].shape
    assert len(shape) == len(pattern), name
    return tuple(
        SIZES[letters[letter]] if size < 0 else size
        for letter, size in zip(pattern, shape, strict=True)
    )


@pytest.mark.parametrize("release", RELEASES, ids=str)
@pytest.mark.parametrize("graph", SEGMENTS)
def test_every_attention_is_its_plugin(
    graph: str, release: tuple[int, int], package: Package, toolkit: Toolkit, remote: Remote
) -> None:
    manifest = package.manifest
    op = RESTORED_CACHE_ATTENTION if manifest.restores else SPLIT_CACHE_ATTENTION
    model = prepare(package.read(graph), manifest.dims, plugins=True).model
    nodes = [node for node in model.graph.node if node.op_type == op.name]
    assert len(nodes) == sum(
        s.last_layer - s.first_layer for s in manifest.segments if s.file == graph
    )
    known = builtins(toolkit, model)
    assert known == {node.op_type for node in model.graph.node} - {op.name}

    # The file as it is in the package, for those who build by themselves.
    assert remote(parsing.parse_model, package.read(graph), release, known) == ""
    # The worker registers, parses and lints; nothing is refused.
    assert remote(parsing.run_job, job(package.folder, graph), release, known) == ""

    shapes, types = shapes_at_plugins(toolkit, package, graph)
    sizes = {
        name: with_sizes(op, name, shapes[name], place)
        for node in nodes
        for place, name in enumerate(node.input)
    }
    found = remote(parsing.plugins, types, shapes, sizes)
    assert [one.node for one in found] == [node.name for node in nodes]
    dims, outputs = manifest.dims, declared(model)
    floating = {"fp16": "HALF", "bf16": "BF16"}[manifest.dtype]
    scale = dims.head_dim**-0.5
    for node, one in zip(nodes, found, strict=True):
        assert one.creator == (op.name, "1", "avl")
        assert (one.request, one.kind) == ("STRICT_AOT", "AOT")
        assert one.fields == (("scale", "FLOAT32", (pytest.approx(scale, rel=1e-7),)),)
        assert one.attributes == {"scale": pytest.approx(scale, rel=1e-7)}
        assert isinstance(one.attributes["scale"], float)
        # Kernels are chosen by these, and cannot be where a profile would decide them.
        q, k_new = shapes[node.input[0]], shapes[node.input[1]]
        assert (q[1], q[3]) == (dims.num_heads, dims.head_dim)
        assert (k_new[1], k_new[3]) == (dims.num_kv_heads, dims.head_dim)
        assert [types[name] for name in node.input] == [
            {"T": floating, "int64": "INT64", "float32": "FLOAT"}[value.dtype]
            for value in op.inputs
        ]
        assert len(one.inputs) == len(op.inputs)
        assert list(one.outputs) == list(node.output)
        wanted = [outputs[name] for name in node.output[1:]]
        assert len(wanted) == 3
        out = (2, dims.num_heads, 5, dims.head_dim)
        assert one.output_types == (floating, *(kind for kind, _ in wanted))
        assert one.output_sizes == (out, *(shape for _, shape in wanted))


def changed(package: Path, out: Path, attributes: Mapping[str, Any], function: bool = True) -> Path:
    """A copy whose attention nodes carry other attributes; None removes one."""
    folder = shutil.copytree(package, out)
    path = folder / SEGMENTS[0]
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == SPLIT_CACHE_ATTENTION.name:
            kept = [one for one in node.attribute if one.name not in attributes]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.extend(
                helper.make_attribute(name, value)
                for name, value in attributes.items()
                if value is not None
            )
    if not function:
        del model.functions[:]
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((folder / "avl.json").read_text())
    for file in manifest["files"]:
        if file["path"] == path.name:
            data = path.read_bytes()
            file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "avl.json").write_text(json.dumps(manifest))
    return folder


NOT_OURS: dict[str, Mapping[str, Any]] = {
    "no namespace": {"plugin_namespace": None},
    "another namespace": {"plugin_namespace": "another"},
    "another version": {"plugin_version": "2"},
}


@pytest.fixture(scope="module")
def fp16(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fp16") / "tiny.avl"
    options = ["--dtype", "fp16", "--no-check"]
    assert export(["--model", str(tiny_checkpoint), "--out", str(out), *options]) == 0
    return out


def refusal(folder: Path, release: tuple[int, int], toolkit: Toolkit, remote: Remote) -> str:
    package = load_package(folder)
    model = prepare(package.read(SEGMENTS[0]), package.manifest.dims, plugins=True).model
    text = remote(parsing.run_job, job(folder, SEGMENTS[0]), release, builtins(toolkit, model))
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("release", RELEASES, ids=str)
@pytest.mark.parametrize("case", NOT_OURS)
def test_a_node_that_names_another_plugin_fails_the_lint(
    case: str,
    release: tuple[int, int],
    fp16: Path,
    tmp_path: Path,
    toolkit: Toolkit,
    remote: Remote,
) -> None:
    """The parser takes its function body instead, and says nothing."""
    folder = changed(fp16, tmp_path / "changed.avl", NOT_OURS[case])
    text = refusal(folder, release, toolkit, remote)
    wanted = "decoder.0.onnx: expected 2 plugin layers, found 0, without node_"
    assert text.startswith(wanted)
    assert "\n" not in text
    assert remote(parsing.plugins, {}, {}, {}) == []


@pytest.mark.parametrize("release", RELEASES, ids=str)
def test_without_a_body_such_a_node_is_not_supported(
    release: tuple[int, int], fp16: Path, tmp_path: Path, toolkit: Toolkit, remote: Remote
) -> None:
    attributes = {"plugin_version": "2"}
    folder = changed(fp16, tmp_path / "changed.avl", attributes, function=False)
    assert refusal(folder, release, toolkit, remote).startswith("avl::SplitCacheAttention node_")


def test_kernels_compiled_later_are_not_offered(
    fp16: Path, tmp_path: Path, toolkit: Toolkit, remote: Remote
) -> None:
    folder = changed(fp16, tmp_path / "changed.avl", {"aot": 0})
    assert "JIT implementation requested, but not defined" in refusal(
        folder, (10, 15), toolkit, remote
    )

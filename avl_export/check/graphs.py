"""A package's graphs as they are, in ONNX Runtime: whole, or a part of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
import onnxruntime as ort

from avl_export.check.runners import Runner
from avl_plugins import graph_io
from avl_plugins.schema import ADD_RMS_NORM, DOMAIN
from avl_runtime.package.package import Package
from avl_runtime.vision import Kind

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph of a package, without its weights.

    Attributes:
        made_by: value -> the node that computes it.
        kinds: dtypes of the graph's own inputs.
        weights: names of the values that are computed from nothing but weights.
    """

    package: Package
    model: onnx.ModelProto
    made_by: Mapping[str, onnx.NodeProto]
    weights: frozenset[str]
    kinds: Mapping[str, np.dtype[Any]]

    def run(self, given: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """Values of the graph, from any values that they can be computed from.

        Only the nodes between `given` and `wanted` are run, and only their weights are read.
        Arrays are cast to what the graph takes.
        """
        inputs, nodes, weights = self._between(given, wanted)
        feeds = {name: given[name].astype(self._kind(name), copy=False) for name in inputs}
        graph = onnx.helper.make_graph(
            nodes,
            "part",
            [_info(name, array) for name, array in feeds.items()],
            [onnx.helper.make_empty_tensor_value_info(name) for name in wanted],
            [w for w in self.model.graph.initializer if w.name in weights],
        )
        part = onnx.ModelProto()
        part.CopyFrom(self.model)
        part.graph.CopyFrom(graph)
        found = _session(self.package, part).run(list(wanted), feeds)
        return [np.asarray(array) for array in found]

    def _kind(self, name: str) -> np.dtype[Any]:
        return self.kinds.get(name, dtype_of(self.package))

    def _between(
        self, given: Mapping[str, Array], wanted: Sequence[str]
    ) -> tuple[list[str], list[onnx.NodeProto], set[str]]:
        """Inputs, nodes in the graph's order, and weights that `wanted` need."""
        stored = {weight.name for weight in self.model.graph.initializer}
        inputs: dict[str, None] = {}
        weights: set[str] = set()
        needed: set[int] = set()
        todo = list(wanted)
        while todo:
            name = todo.pop()
            if name in given:
                inputs[name] = None
            elif name in stored:
                weights.add(name)
            elif name in self.made_by:
                node = self.made_by[name]
                if id(node) not in needed:
                    needed.add(id(node))
                    todo.extend(value for value in node.input if value)
            else:
                raise KeyError(name)
        return list(inputs), [n for n in self.model.graph.node if id(n) in needed], weights

    def enters(self, prefix: str) -> str:
        """The state that a layer is given whose weights are named `prefix`...

        It is what the layer's first norm reads: beside its weight, if that is one node.

        Raises:
            KeyError: there is no such node.
        """
        for node in self.model.graph.node:
            if any(self._root(name).startswith(prefix) for name in node.input):
                data = [name for name in node.input if name and name not in self.weights]
                if data:
                    return self._before_norm(data[0]) if node.op_type == "Mul" else data[0]
        raise KeyError(prefix)

    def _before_norm(self, name: str) -> str:
        """What was divided by its root mean square to give `name`, in nodes of their own."""
        while name in self.made_by and self.made_by[name].op_type in {"Mul", "Div", "Cast"}:
            node = self.made_by[name]
            factors = [value for value in node.input if not self._is_scale(value)]
            if len(factors) != 1:
                break
            name = factors[0]
        return name

    def _is_scale(self, name: str) -> bool:
        node = self.made_by.get(name)
        return name in self.weights or (
            node is not None and node.op_type in {"Sqrt", "Reciprocal", "Rsqrt", "Pow"}
        )

    def _root(self, name: str) -> str:
        """The weight that a value of `weights` comes from, or the name itself."""
        while name in self.weights and name in self.made_by:
            name = self.made_by[name].input[0]
        return name


def read_graph(package: Package, file: str) -> Graph:
    """The graph in `file` of `package`.

    A sum and its norm are nodes of their own: layers begin between them.
    """
    model = onnx.load(package.file(file), load_external_data=False)
    if any(node.op_type == ADD_RMS_NORM.name for node in model.graph.node):
        model = onnx.inliner.inline_selected_functions(model, [(DOMAIN, ADD_RMS_NORM.name)])
    weights = {weight.name for weight in model.graph.initializer}
    made_by = {}
    for node in model.graph.node:
        made_by.update(dict.fromkeys(node.output, node))
        if node.input and all(name in weights for name in node.input if name):
            weights.update(node.output)
    kinds = {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in model.graph.input
    }
    return Graph(package, model, made_by, frozenset(weights), kinds)


class GraphRunner(Runner):
    """The graphs of a package as they are, without the runtime.

    Args:
        taps: whether each decoder layer's output is one of its graph's too, `layer_out.L`.
    """

    def __init__(self, package: Package, taps: bool = False) -> None:
        super().__init__("the package", package.manifest, dtype_of(package))
        self._sessions = {}
        for file in package.manifest.graphs:
            model = onnx.load(package.file(file), load_external_data=False)
            if taps:
                made = [name for node in model.graph.node for name in node.output]
                states = [name for name in made if graph_io.kind_of(name) == graph_io.TAP]
                model.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, states))
            self._sessions[file] = _session(package, model)

    def _encode(self, kind: Kind, inputs: Mapping[str, Array]) -> list[Array]:
        given = {
            name: array.astype(self.dtype) if array.dtype == np.float32 else array
            for name, array in inputs.items()
        }
        found = self._sessions[self.manifest.encoders[kind]].run(None, given)
        return [np.asarray(array, np.float32) for array in found]

    def _run(self, segment: int, feeds: Mapping[str, Array]) -> dict[str, Array]:
        session = self._sessions[self.manifest.segments[segment].file]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, map(np.asarray, session.run(names, feeds)), strict=True))


def dtype_of(package: Package) -> np.dtype[Any]:
    """What the graphs of a package in fp32 or fp16 compute in."""
    return np.dtype(np.float16 if package.manifest.dtype == "fp16" else np.float32)


def _session(package: Package, model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Quantized linears with float activations: what is checked is the graph, not a fast kernel.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(package.weights_folder)
    )
    data = model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _info(name: str, array: Array) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, [None] * array.ndim)

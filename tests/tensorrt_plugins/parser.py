"""What TensorRT's open-source ONNX parser does with the nodes of a graph, as far as plugins go.

After onnx/onnx-tensorrt as of TensorRT 10.15 (commit dd0a3a9f), function by function: `parseNode`
and `isNodeInPluginRegistry` of ModelImporter.cpp, `FallbackPluginImporter`, `loadFields` and
`addPluginWithCreator` of onnxOpImporters.cpp, `importPluginCreator` and `createPlugin` of
importerUtils.cpp; 10.9 where it differs. Creators and plugins are those of tensorrt-lean's
registry: this runs in a process where `tensorrt` is tensorrt-lean, and `tensorrt_plugins.parsing`
puts it in the place of the builder and parser that tensorrt-lean lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx

NEWER = (10, 15)  # the first release with kENABLE_PLUGIN_OVERRIDE
BY_DOMAIN = (10, 10)  # the first that looks for a plugin under the node's domain too
PLUGIN = "PLUGIN_V3"

Shape = tuple[int, ...]


class ParserError(Exception):
    """What the parser says of a node that it cannot import."""


@dataclass(frozen=True)
class Imported:
    """A node that became a plugin, and what the plugin says of itself.

    Attributes:
        fields: name, type, and elements of each field that the parser made of an attribute.
        request: which implementation the parser asked for.
        kind: which one the plugin is.
        output_sizes: for the sizes that `ask` is given.
    """

    node: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    creator: tuple[str, str, str]
    fields: tuple[tuple[str, str, tuple[float, ...]], ...]
    attributes: Mapping[str, Any]
    request: str
    kind: str
    output_types: tuple[str, ...] = ()
    output_sizes: tuple[Shape, ...] = ()


@dataclass
class Layer:
    """A layer of a network, through what `avl_runtime.engines.network.listing` asks for."""

    name: str
    kind: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    plugin: Any = None
    imported: Imported | None = None

    @property
    def type(self) -> Any:
        return SimpleNamespace(name=self.kind)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Any:
        return SimpleNamespace(name=self.inputs[index])

    def get_output(self, index: int) -> Any:
        return SimpleNamespace(name=self.outputs[index])


class Network(Layer):
    """A network; its inputs and outputs are read as a layer's are."""

    def __init__(self) -> None:
        super().__init__("network", "", (), ())
        self.layers: list[Layer] = []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]


class Builder:
    """A builder of networks, and of no engines."""

    def __init__(self, _logger: Any) -> None:
        pass

    def create_network(self, flags: int = 0) -> Network:
        return Network()


@dataclass
class OnnxParser:
    """The parser of one release.

    Attributes:
        release: major and minor version of TensorRT.
        builtins: operators that it has an importer of its own for.
        last: the network that was parsed last.
    """

    release: ClassVar[tuple[int, int]] = NEWER
    builtins: ClassVar[frozenset[str]] = frozenset()
    last: ClassVar[Network]

    network: Network
    logger: Any
    errors: list[tuple[int, str]] = field(default_factory=list)

    def parse(self, data: bytes, near: str) -> bool:
        model = onnx.load_model_from_string(data)
        graph, functions = model.graph, {one.name for one in model.functions}
        network = OnnxParser.last = self.network
        weights = {tensor.name for tensor in graph.initializer}
        network.inputs = [v.name for v in graph.input if v.name not in weights]
        network.outputs = [value.name for value in graph.output]
        for index, node in enumerate(graph.node):
            try:
                network.layers.append(self._layer(node, functions))
            except (ParserError, ValueError) as error:
                self.errors.append((index, str(error)))
                break
        return not self.errors

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Any:
        node, text = self.errors[index]
        return SimpleNamespace(
            node=lambda: node, desc=lambda: text, local_function_stack=lambda: []
        )

    def _layer(self, node: onnx.NodeProto, functions: set[str]) -> Layer:
        """`parseNode`."""
        how = self._dispatch(node, functions)
        layer = Layer(node.name, how, tuple(node.input), tuple(node.output))
        return self._plugin(node) if how == PLUGIN else layer

    def _dispatch(self, node: onnx.NodeProto, functions: set[str]) -> str:
        """Who imports a node; the kind of layer stands for it."""
        marked = "plugin_namespace" in attributes_of(node)
        registered = _creator(node, _namespace(node)) is not None
        if self.release >= NEWER and marked and registered:
            return PLUGIN
        if node.op_type in self.builtins:
            return node.op_type
        if node.op_type in functions:
            # Before 10.15 a registered plugin was preferred here, and only here.
            return PLUGIN if self.release < NEWER and registered else "FUNCTION"
        if self.release < NEWER or not marked:
            return PLUGIN
        raise ParserError(f"No importer registered for op: {node.op_type}")

    def _plugin(self, node: onnx.NodeProto) -> Layer:
        """`FallbackPluginImporter` and `addPluginWithCreator`."""
        import tensorrt as trt

        namespace = _namespace(node)
        creator = _creator(node, namespace)
        if creator is None and self.release >= BY_DOMAIN:
            namespace = node.domain
            creator = _creator(node, namespace)
        if creator is None:
            raise ParserError(
                "Plugin not found, are the plugin name, version, and namespace correct?"
            )
        fields = load_fields(node, [one.name for one in creator.field_names])
        plugin = creator.create_plugin(
            node.op_type,  # the framework knows plugins by the name of the op, not of the node
            namespace,
            trt.PluginFieldCollection(fields),
            trt.TensorRTPhase.BUILD,
            _request(node),
        )
        imported = Imported(
            node=node.name,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            creator=(creator.name, creator.plugin_version, creator.plugin_namespace),
            fields=tuple((one.name, one.type.name, tuple(one.data.tolist())) for one in fields),
            attributes=plugin.attrs,
            request=_request(node).name,
            kind="AOT" if isinstance(plugin, trt.IPluginV3QuickAOTBuild) else "JIT",
        )
        return Layer(node.name, PLUGIN, node.input, node.output, plugin, imported)


def attributes_of(node: onnx.NodeProto) -> dict[str, onnx.AttributeProto]:
    return {one.name: one for one in node.attribute}


def _text(node: onnx.NodeProto, name: str, default: str) -> str:
    found = attributes_of(node).get(name)
    return default if found is None else found.s.decode()


def _namespace(node: onnx.NodeProto) -> str:
    return _text(node, "plugin_namespace", "")


def _creator(node: onnx.NodeProto, namespace: str) -> Any:
    """`importPluginCreator`: all three strings are equal, or there is none."""
    import tensorrt as trt

    wanted = (node.op_type, _text(node, "plugin_version", "1"), namespace)
    for creator in trt.get_plugin_registry().all_creators_recursive:
        if (creator.name, creator.plugin_version, creator.plugin_namespace) == wanted:
            return creator
    return None


def load_fields(node: onnx.NodeProto, declared: Sequence[str]) -> list[Any]:
    """`loadFields`: in the creator's order, of those attributes that the node has."""
    import tensorrt as trt

    kinds = onnx.AttributeProto
    found = attributes_of(node)
    fields = []
    for name in declared:
        if name not in found:
            continue  # with a warning
        one = found[name]
        value = onnx.helper.get_attribute_value(one)
        if one.type in (kinds.FLOAT, kinds.FLOATS):
            data, kind = np.atleast_1d(np.array(value, np.float32)), trt.PluginFieldType.FLOAT32
        elif one.type in (kinds.INT, kinds.INTS):
            # INT32, although ONNX has 64 bits.
            data, kind = np.atleast_1d(np.array(value, np.int32)), trt.PluginFieldType.INT32
        elif one.type == kinds.STRING:
            data = np.frombuffer(value + b"\0", np.int8)
            kind = trt.PluginFieldType.CHAR
        else:
            raise ParserError(f"Attributes of type: {one.type} are unsupported as plugin fields.")
        fields.append(trt.PluginField(name, data, kind))
    return fields


def _request(node: onnx.NodeProto) -> Any:
    """`createPlugin`: which implementation is asked for; no network flag is set."""
    import tensorrt as trt

    found = attributes_of(node).get("aot")
    if found is None:
        return trt.QuickPluginCreationRequest.UNKNOWN
    request = trt.QuickPluginCreationRequest
    return request.STRICT_AOT if found.i else request.STRICT_JIT

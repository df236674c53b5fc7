"""A graph parsed by TensorRT's or TensorRT-RTX's own parser, and a listing of what became of it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from avl_runtime.engines.lint import Attention, Layer, Listing
from avl_runtime.engines.options import BuildError
from avl_runtime.machine.installation import install_extra
from avl_runtime.package.engine_sets import EngineBackend

if TYPE_CHECKING:
    import onnx

MODULES: dict[EngineBackend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
LOG_LIMIT = 200  # messages kept
SILENT = 1000  # above every severity of Polygraphy: what matters is in its exceptions


@dataclass(frozen=True, slots=True, eq=False)
class Toolkit:
    """The backend's module, Polygraphy's loaders on top of it, and what both of them said."""

    backend: EngineBackend
    trt: Any
    loaders: Any
    logger: Any
    log: list[tuple[str, str]]

    @property
    def errors(self) -> str:
        """The errors so far, in one line."""
        said = [text for severity, text in self.log if severity in ("ERROR", "INTERNAL_ERROR")]
        return "; ".join(" ".join(text.split()) for text in said)[:600] or "no message"


@dataclass(frozen=True, slots=True, eq=False)
class Parsed:
    """A network, and the builder and parser that must live as long."""

    builder: Any
    network: Any
    parser: Any


def missing(backend: EngineBackend) -> str | None:
    """The first module that a build needs and that is not installed."""
    names = (MODULES[backend], "polygraphy", "onnx")
    return next((name for name in names if find_spec(name) is None), None)


def load_toolkit(backend: EngineBackend) -> Toolkit:
    """Import the backend; a process can have only one of them, as Polygraphy can.

    Raises:
        BuildError: a module is missing.
    """
    name = missing(backend)
    if name is not None:
        raise BuildError(
            f"expected the Python package {name}, found none; run: {install_extra(backend)}"
        )
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if backend == "tensorrt-rtx" else "0"
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = SILENT
    from polygraphy.backend import trt as loaders
    from polygraphy.backend.trt import util

    trt: Any = importlib.import_module(MODULES[backend])
    log: list[tuple[str, str]] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.WARNING and len(log) < LOG_LIMIT:
                log.append((severity.name, text))

    logger = util.TRT_LOGGER = Log()  # Polygraphy makes one once and keeps it here; ours is silent
    return Toolkit(backend, trt, loaders, logger, log)


def parse(toolkit: Toolkit, model: onnx.ModelProto, near: str) -> tuple[Parsed, list[str]]:
    """Parse a model; returns its network and, where that is incomplete, what is not supported.

    Weights are mapped from the files that the model names, not read. Fused attention may be taken
    apart: TensorRT-RTX has no kernel for it in fp32 or with heads above 256, and would refuse to
    build what it parsed.

    Args:
        near: a path in the folder that the names of weight files are relative to.
    """
    builder, network = toolkit.loaders.create_network(strongly_typed=True)
    parser = toolkit.trt.OnnxParser(network, toolkit.logger)
    parsed = Parsed(builder, network, parser)
    if parser.parse(model.SerializeToString(), near):
        for attention in _attentions(toolkit.trt, network):
            attention.decomposable = True
        return parsed, []
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return parsed, [_unsupported(error, model) for error in errors] or [toolkit.errors]


def _unsupported(error: Any, model: onnx.ModelProto) -> str:
    where, nodes = "the model", model.graph.node
    if 0 <= error.node() < len(nodes) and not error.local_function_stack():
        node = nodes[error.node()]
        where = f"{node.domain}::{node.op_type}".removeprefix("::")
        where += f" {node.name}" if node.name else f" that makes {', '.join(node.output)}"
    return f"{where}: {' '.join(str(error.desc()).split())[:300]}"


def listing(toolkit: Toolkit, network: Any) -> Listing:
    """The layers of a network."""
    return Listing(
        inputs=tuple(network.get_input(i).name for i in range(network.num_inputs)),
        outputs=tuple(network.get_output(i).name for i in range(network.num_outputs)),
        layers=tuple(_layers(toolkit.trt, network)),
    )


def _layers(trt: Any, network: Any) -> Iterator[Layer]:
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        inputs = (layer.get_input(i) for i in range(layer.num_inputs))
        yield Layer(
            name=layer.name,
            kind=layer.type.name,
            inputs=tuple(tensor.name for tensor in inputs if tensor is not None),
            outputs=tuple(layer.get_output(i).name for i in range(layer.num_outputs)),
            attention=_attention(trt, layer),
        )


def _attentions(trt: Any, network: Any) -> Iterator[Any]:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    fused = (_fused(trt, layer) for layer in layers)
    return (attention for attention in fused if attention is not None)


def _fused(trt: Any, layer: Any) -> Any:
    """The fused attention that begins with `layer`, None if that is another layer."""
    if layer.type.name != "ATTENTION_INPUT":
        return None
    layer.__class__ = trt.IAttentionInputLayer
    return layer.attention


def _attention(trt: Any, layer: Any) -> Attention | None:
    found = _fused(trt, layer)
    if found is None:
        return None
    kind = getattr(found, "causal_kind", None)
    queries, keys = (found.get_input(i).shape[2] for i in (0, 1))
    return Attention(
        # Before there were kinds, causal meant the upper left.
        causal=kind.name if kind is not None else ("UPPER_LEFT" if found.causal else "NONE"),
        has_lengths=getattr(found, "key_value_lengths", None) is not None,
        lengths=(queries, keys),
    )

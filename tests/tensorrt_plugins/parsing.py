"""Runs avl-build's own worker on top of `tensorrt_plugins.parser`, in tensorrt-lean's process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

from avl_plugins.errors import AvlError
from avl_runtime.engines import worker
from avl_runtime.engines.jobs import read_job
from tensorrt_plugins.parser import Builder, Imported, Network, OnnxParser, Shape

UNKNOWN = -1  # a size that a profile decides


def use_parser(release: tuple[int, int], builtins: frozenset[str]) -> None:
    """Give this process's `tensorrt` a builder and the parser of `release`."""
    import tensorrt as trt

    trt.Builder, trt.OnnxParser = Builder, OnnxParser
    trt.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    OnnxParser.release, OnnxParser.builtins = release, builtins


def run_job(text: str, release: tuple[int, int], builtins: frozenset[str]) -> str:
    """Have avl-build's worker parse and lint a graph; returns its refusal, or "".

    Nodes that the parser refuses are an outcome for `avl-build --dry-run` and a refusal otherwise:
    here they are a refusal.
    """
    use_parser(release, builtins)
    try:
        outcome = worker.run(read_job(text))
    except AvlError as error:
        return str(error)
    return "; ".join(outcome.unsupported)


def parse_model(data: bytes, release: tuple[int, int], builtins: frozenset[str]) -> str:
    """Parse a model without avl-build; returns the parser's refusal, or ""."""
    from avl_plugins.tensorrt import register

    register(80)
    use_parser(release, builtins)
    parser = OnnxParser(Network(), None)
    parser.parse(data, "")
    return "; ".join(text for _, text in parser.errors)


def plugins(
    types: Mapping[str, str], shapes: Mapping[str, Shape], sizes: Mapping[str, Shape]
) -> list[Imported]:
    """The plugins of the network parsed last, after asking them as a builder does.

    Args:
        types: TensorRT's name for the type of every tensor that plugins read.
        shapes: their shapes, -1 where a profile decides.
        sizes: the same with a number for every -1.
    """
    import tensorrt as trt

    found = []
    for layer in OnnxParser.last.layers:
        if layer.imported is None:
            continue
        plugin, names = layer.plugin, layer.inputs
        kinds = [getattr(trt.DataType, types[name]) for name in names]
        ranks = [len(shapes[name]) for name in names]
        output_types = plugin.get_output_data_types(kinds, ranks)
        expressions = [
            trt.DimsExprs(
                trt.IDimensionExpr((i, axis) if size == UNKNOWN else size)
                for axis, size in enumerate(shapes[name])
            )
            for i, name in enumerate(names)
        ]
        at = {
            (i, axis): size for i, name in enumerate(names) for axis, size in enumerate(sizes[name])
        }
        outputs = plugin.get_output_shapes(expressions, [], trt.IExprBuilder())
        found.append(
            replace(
                layer.imported,
                output_types=tuple(str(one).split(".")[-1] for one in output_types),
                output_sizes=tuple(tuple(e.evaluate(at) for e in one) for one in outputs),
            )
        )
    return found

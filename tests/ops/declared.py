"""What the graphs of a package declare, against what `avl_plugins.graph_io` says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from avl_plugins import graph_io
from avl_runtime.package.package import load_package

TYPES = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
DTYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
ENCODER_INPUTS = {"pixel_values", "position_ids", "places", "shares", "mask", "order"}


def declared(values: Iterable[onnx.ValueInfoProto]) -> list[tuple[str, int, tuple[Any, ...]]]:
    """Names, types and shapes, as the graph has them."""
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    ]


def check_graphs(folder: Path) -> None:
    """The graphs of a package declare what `graph_io` says."""
    package = load_package(folder)
    manifest = package.manifest
    types = {**TYPES, "T": DTYPES[manifest.dtype]}
    for segment in manifest.segments:
        graph = onnx.load(package.file(segment.file), load_external_data=False).graph
        said = manifest.graph_of(segment)
        given = (*said.inputs(), *said.defaulted())
        for values, found in ((given, graph.input), (said.outputs(), graph.output)):
            wanted = [(value.name, types[value.dtype], value.shape) for value in values]
            assert declared(found) == wanted
    features = ["image_features", "deepstack_features"][: 1 + bool(manifest.deepstack_layers)]
    for file in set(manifest.encoders.values()):
        graph = onnx.load(package.file(file), load_external_data=False).graph
        assert [value.name for value in graph.output] == features
        assert {graph_io.PIXELS} <= {value.name for value in graph.input} <= ENCODER_INPUTS

"""Whether a package's graphs have the shapes that its manifest says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from avl_plugins import graph_io
from avl_runtime.package.manifest import MANIFEST, PackageError

_TYPES = {
    "fp32": "tensor(float)",
    "fp16": "tensor(float16)",
    "bf16": "tensor(bfloat16)",
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "int8": "tensor(int8)",
    "uint8": "tensor(uint8)",
}


class Value(Protocol):
    """An input or output as ONNX Runtime names it; a free dimension is a name or None."""

    name: str
    shape: Sequence[int | str | None]
    type: str


class Session(Protocol):
    """The part of an `onnxruntime.InferenceSession` that says what its graph reads and makes."""

    def get_inputs(self) -> Sequence[Value]: ...

    def get_outputs(self) -> Sequence[Value]: ...


def check_segment(session: Session, graph: graph_io.Segment, file: str, dtype: str) -> None:
    """Refuse a decoder graph in `file` that is not the one that the manifest describes.

    Args:
        dtype: that the package computes in.

    Raises:
        PackageError: a tensor is missing, or has another type, or another size where it is fixed.
    """
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    # First of all, as a manifest may name more layers than could be looked at one by one.
    said = graph.last - graph.first if graph.kinds is None else len(graph.row_layers)
    held = sum(graph_io.kind_of(name) == graph_io.ACTIVE.keys for name in inputs)
    if said != held:
        raise _differs(file, f"{said} layers", f"{held}")
    types = {one.name: one.type for one in (*session.get_inputs(), *session.get_outputs())}
    for values, found in ((graph.inputs(), inputs), (graph.outputs(), outputs)):
        for value in values:
            _check(file, value.name, value.shape, found)
            said_type = _TYPES[dtype if value.dtype == "T" else value.dtype]
            if types[value.name] != said_type:
                raise _differs(file, f"{value.name} as {said_type}", types[value.name])


def check_media(session: Session, file: str, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Refuse what a layout of the manifest has prepared, if the encoder `file` reads another shape.

    Raises:
        PackageError: an array has another size where the graph's is fixed.
    """
    shapes = {value.name: value.shape for value in session.get_inputs()}
    for name, array in inputs.items():
        _check(file, name, array.shape, shapes)


def _check(
    file: str,
    name: str,
    said: Sequence[int | str],
    found: Mapping[str, Sequence[int | str | None]],
) -> None:
    if name not in found:
        raise _differs(file, f"a tensor {name}", "none")
    shape = found[name]
    pairs = zip(said, shape, strict=False)
    if len(said) != len(shape) or any(
        isinstance(size, int) and isinstance(fixed, int) and size != fixed for size, fixed in pairs
    ):
        raise _differs(file, f"{name} {_shown(said)}", _shown(shape))


def _differs(file: str, said: str, found: str) -> PackageError:
    return PackageError(
        f"{file}: expected {said} as {MANIFEST} says, found {found}; {MANIFEST} has changed since "
        "export, export again"
    )


def _shown(shape: Iterable[int | str | None]) -> str:
    return "[" + ", ".join(str(size) if isinstance(size, int) else "any" for size in shape) + "]"

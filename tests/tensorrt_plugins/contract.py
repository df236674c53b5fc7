"""What runs in a process where `tensorrt` is tensorrt-lean and Triton interprets.

Drives the framework's own plugin class as TensorRT's builder does: a plugin from ONNX attributes,
types, shapes, formats, tactics, launch parameters, kernel; then runs the source of the kernel that
came back, with the launch and the order of arguments that came back.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from avl_plugins.cuda.packaged import index
from avl_plugins.errors import AvlError
from avl_plugins.kernels.catalog import VARIANTS, Variant
from avl_plugins.schema import RESTORED_CACHE_ATTENTION, SPLIT_CACHE_ATTENTION, Op
from kernel_cases import FAR, Attention, attention_errors
from kernels.interpreted import checked

# Sizes that a profile leaves open; all others are fixed.
OPEN = {"B", "S", "A", "P", "F"}
UNKNOWN = -1


def use_lean() -> None:
    """Make `import tensorrt` find tensorrt-lean in this process."""
    sys.path.insert(0, str(Path(__file__).parent / "lean"))


@dataclass
class Launch:
    """Where the framework writes launch parameters, and the scalars after them."""

    parameters: Any = field(default_factory=SimpleNamespace)
    scalars: dict[int, Any] = field(default_factory=dict)
    nbSymExprs: int = 0

    def __setitem__(self, position: int, scalar: Any) -> None:
        self.scalars[position] = scalar


@dataclass(frozen=True)
class Kernel:
    """What TensorRT would launch, for one set of sizes."""

    entry: str
    ptx: bytes
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    scalars: tuple[int, ...]


class Node:
    """One node of an op in a network, as a builder sees it.

    Args:
        dims: smallest and largest size of every dimension; equal ones are fixed.
        dtype: what T is, as a TensorRT name such as "HALF".
    """

    def __init__(
        self, op: Op, attributes: dict[str, float], dims: dict[str, tuple[int, int]], dtype: str
    ) -> None:
        import tensorrt as trt

        from avl_plugins.tensorrt import register

        register(80)
        register(80)  # again, as tools do
        self.op, self._trt = op, trt
        creator = trt.get_plugin_registry().get_creator(op.name, str(op.version), op.domain)
        self.declared = [one.name for one in creator.field_names]
        fields = [
            trt.PluginField(name, np.array([value], np.float32), trt.PluginFieldType.FLOAT32)
            for name, value in attributes.items()
        ]
        self.plugin = creator.create_plugin(
            op.name,
            op.domain,
            trt.PluginFieldCollection(fields),
            trt.TensorRTPhase.BUILD,
            trt.QuickPluginCreationRequest.STRICT_AOT,
        )
        kinds = {"T": dtype, "int64": "INT64", "float32": "FLOAT"}
        self._types = {v.name: getattr(trt.DataType, kinds[v.dtype]) for v in op.inputs}
        self._dims = dims
        inputs = [self._types[value.name] for value in op.inputs]
        ranks = [len(value.shape) for value in op.inputs]
        self.output_types = self.plugin.get_output_data_types(inputs, ranks)
        self.aliases = [self.plugin.get_aliased_input(i) for i in range(len(op.outputs))]
        self._exprs = [self._symbolic(i, value.shape) for i, value in enumerate(op.inputs)]
        self._builder = trt.IExprBuilder()
        self._output_exprs = self.plugin.get_output_shapes(self._exprs, [], self._builder)

    def _symbolic(self, position: int, shape: tuple[str, ...]) -> Any:
        sizes = []
        for axis, name in enumerate(shape):
            least, most = self._dims[name]
            sizes.append(self._trt.IDimensionExpr(least if least == most else (position, axis)))
        return self._trt.DimsExprs(sizes)

    def output_shapes(self, sizes: dict[str, int]) -> list[tuple[int, ...]]:
        at = self._environment(sizes)
        return [tuple(size.evaluate(at) for size in shape) for shape in self._output_exprs]

    def _environment(self, sizes: dict[str, int]) -> dict[tuple[int, int], int]:
        return {
            (i, axis): sizes[name]
            for i, value in enumerate(self.op.inputs)
            for axis, name in enumerate(value.shape)
        }

    def _descriptions(self) -> list[Any]:
        trt, found = self._trt, []
        kinds = [self._types[value.name] for value in self.op.inputs] + list(self.output_types)
        for value, kind in zip(self.op.inputs + self.op.outputs, kinds, strict=True):
            ends = [self._dims[name] for name in value.shape]
            sizes = trt.Dims([a if a == b else UNKNOWN for a, b in ends])
            least, most = (tuple(end[i] for end in ends) for i in (0, 1))
            desc = trt.PluginTensorDesc(sizes, kind)
            found.append(trt.DynamicPluginTensorDesc(desc, least, most, most))
        return found

    def formats(self) -> list[list[str]]:
        """Every combination of types that the plugin offers; all are linear."""
        descriptions, count = self._descriptions(), len(self.op.inputs)
        combinations = self.plugin.get_supported_format_combinations(descriptions, count)
        assert all(one.format == self._trt.TensorFormat.LINEAR for one in combinations)
        names = [str(one.type).split(".")[-1] for one in combinations]
        width = len(descriptions)
        return [names[i : i + width] for i in range(0, len(names), width)]

    def tactics(self) -> list[int]:
        descriptions, count = self._descriptions(), len(self.op.inputs)
        self.plugin.get_supported_format_combinations(descriptions, count)
        self.plugin.configure_plugin(descriptions[:count], descriptions[count:])
        return sorted(self.plugin.get_valid_tactics())

    def kernel(self, tactic: int, sizes: dict[str, int]) -> Kernel:
        """What a tactic launches for `sizes`."""
        self.tactics()
        self.plugin.set_tactic(tactic)
        descriptions, count = self._descriptions(), len(self.op.inputs)
        launch = Launch()
        self.plugin.get_launch_params(
            self._exprs, descriptions, count, launch.parameters, launch, self._builder
        )
        entry, ptx = self.plugin.clone().get_kernel(
            [one.desc for one in descriptions[:count]], [one.desc for one in descriptions[count:]]
        )
        at = self._environment(sizes)

        def sizes_of(*names: str) -> tuple[int, ...]:
            return tuple(getattr(launch.parameters, name).expr.evaluate(at) for name in names)

        scalars = [launch.scalars[i] for i in range(launch.nbSymExprs)]
        assert all(one.dtype == self._trt.PluginArgDataType.INT32 for one in scalars)
        return Kernel(
            entry,
            ptx,
            sizes_of("grid_x", "grid_y", "grid_z"),
            sizes_of("block_x", "block_y", "block_z"),
            sizes_of("shared_mem")[0],
            tuple(one.expr.evaluate(at) for one in scalars),
        )


def source_of(kernel: Kernel) -> Variant:
    """The variant whose packaged PTX this is, by its hash."""
    digest = hashlib.sha256(kernel.ptx).hexdigest()
    for name, entry in index()["kernels"].items():
        if digest in [file["sha256"] for file in entry["files"]]:
            return VARIANTS[name]
    raise AssertionError("the PTX is none of those packaged")


def interpret(kernel: Kernel, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
    """Run the kernel's source with TensorRT's order of arguments: inputs, scalars, outputs."""
    variant = source_of(kernel)
    function = getattr(importlib.import_module(variant.module), kernel.entry)
    with checked(None):
        function[kernel.grid](*inputs, *kernel.scalars, *outputs, **variant.constants)


def attention_node(case: Attention, dtype: str, **most: int) -> tuple[Node, dict[str, int]]:
    """A node for a case with open sizes from 1 to `most`, and the case's sizes."""
    sizes = {
        "B": case.batch,
        "H": case.kv_heads * case.group,
        "Hkv": case.kv_heads,
        "S": case.new,
        "D": case.head_dim,
        "A": case.active,
        "P": case.parked,
        "R": case.weightings,
        "E": 1,
        "F": case.kv_heads if case.unlike else 1,
        "X": case.axes,
        "Z": case.axes + 1,
        "M": FAR,
    }
    dims = {n: (1, most.get(n, 4096)) if n in OPEN else (size, size) for n, size in sizes.items()}
    dims["S"] = (most.get("S_least", 1), most.get("S", 4096))
    scale = {"scale": case.head_dim**-0.5}
    op = RESTORED_CACHE_ATTENTION if case.restores else SPLIT_CACHE_ATTENTION
    return Node(op, scale, dims, dtype), sizes


def attention_errors_of(case: Attention, tactic: int) -> tuple[float, float]:
    """Errors of what a tactic launches, against float64."""
    dtype = {"float16": "HALF", "bfloat16": "BF16"}[case.dtype]
    node, sizes = attention_node(case, dtype)
    inputs = case.inputs()
    shapes = node.output_shapes(sizes)
    kinds = [inputs["q"].dtype, *[torch.float32] * 3]
    outputs = [
        torch.full(shape, torch.nan, dtype=kind) for shape, kind in zip(shapes, kinds, strict=True)
    ]
    interpret(node.kernel(tactic, sizes), [inputs[name] for name in case.given], outputs)
    errors = attention_errors(case, inputs, outputs)
    return errors.out, errors.mass


def attention_offer(
    dtype: str, least: int, most: int, group: int, form: str = ""
) -> dict[str, Any]:
    """What the plugin answers before any kernel: types, shapes, aliases, tactics."""
    case = Attention(form, "float16", 128, 2, group, 5, 7, 9, (7,), (9,))
    node, sizes = attention_node(case, dtype, S_least=least, S=most)
    return {
        "declared": node.declared,
        "types": [str(kind).split(".")[-1] for kind in node.output_types],
        "aliases": node.aliases,
        "shapes": node.output_shapes(sizes),
        "formats": node.formats(),
        "tactics": node.tactics(),
    }


def attention_launch(
    tactic: int, sizes: dict[str, int], head_dim: int, form: str = ""
) -> dict[str, Any]:
    """Launch parameters of a tactic at other sizes than it was asked for."""
    case = Attention(form, "float16", head_dim, 2, 4, 5, 7, 9, (7,), (9,))
    node, known = attention_node(case, "HALF")
    kernel = node.kernel(tactic, {**known, **sizes})
    variant = source_of(kernel)
    return {
        "grid": kernel.grid,
        "block": kernel.block,
        "shared": kernel.shared,
        "scalars": kernel.scalars,
        "ptx": kernel.ptx.decode(),
        "variant": variant.name,
    }


def prefill_target(capability: int) -> str:
    """What the PTX of prefill is compiled for, once engines are for a compute capability."""
    from avl_plugins.tensorrt import register

    node, sizes = attention_node(Attention("", "float16", 64, 2, 1, 9, 7, 9, (7,), (9,)), "HALF")
    register(capability)  # the next node is for 80 again
    return node.kernel(3, sizes).ptx.decode().split(".target ")[1].split()[0]


def refusal(dtype: str, head_dim: int, form: str = "", axes: int = 1) -> str:
    """The message for a node that no kernel serves, or "" if it is served."""
    case = Attention(form, "float16", head_dim, 2, 1, 1, 7, 9, (7,), (9,), axes=axes)
    node, sizes = attention_node(case, dtype)
    try:
        node.kernel(1, sizes)
    except AvlError as error:
        return str(error)
    return ""

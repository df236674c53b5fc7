"""The plugins, in the form that TensorRT's Python framework reads: by signature and annotation.

Importing this registers them. TensorRT asks for shapes, for the tactics that an optimisation
profile may use, and for one kernel a tactic; what a kernel gets is in the order inputs, scalars,
outputs. There is no workspace, and scalars are 32-bit integers only.
"""

# No postponed annotations: the framework compares the classes themselves.
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, List, Tuple, Union  # the framework knows these forms alone

import tensorrt as trt
import tensorrt.plugin as trtp

from avl_plugins.cuda.packaged import kernel
from avl_plugins.errors import TensorRTError
from avl_plugins.graph_io import WEIGHTS
from avl_plugins.kernels.catalog import (
    DECODE_ROWS,
    HEAD_DIMS,
    MOST_AXES,
    PLUGINS,
    scale_bits,
    variant_of,
)
from avl_plugins.schema import Op

# Any of them is right for any number of new rows; TensorRT times those a profile may use. Sliced
# decode spreads one KV head over several programs, for small batches on large GPUs.
TACTICS = {1: "decode", 2: "decode_sliced", 3: "prefill"}
_FEW, _MANY = [1, 2], [3]

_DTYPES = {trt.DataType.HALF: "float16", trt.DataType.BF16: "bfloat16"}
_TRT_NAMES = {"float16": "FP16", "bfloat16": "BF16", "int64": "INT64", "float32": "FP32"}

_capability = 80

Given = Mapping[str, Any]  # inputs and attributes by the schema's names, `outputs` and `tactic`
Outputs = Tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc]
Kernel = Tuple[Union[str, bytes], Union[str, bytes], trtp.KernelLaunchParams, trtp.SymExprs]


def built_for(capability: int) -> None:
    """Choose PTX for engines of a compute capability such as 90."""
    global _capability  # noqa: PLW0603  # TensorRT calls the functions below without state of ours
    _capability = capability


@dataclass(frozen=True)
class _Declared:
    """A function of a mapping, to callers and `inspect` one of its signature's arguments."""

    function: Callable[[Given], Any]
    __signature__: inspect.Signature

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self.function(self.__signature__.bind(*positional, **named).arguments)


@dataclass(frozen=True)
class _Plugin:
    """An op as the framework asks for it, of kernels whose names begin with `form`."""

    op: Op
    form: str

    @property
    def name(self) -> str:
        return f"{self.op.domain}::{self.op.name}"

    def register(self) -> None:
        """Register it with TensorRT."""
        made = Tuple[trtp.TensorDesc]
        trtp.register(self.name)(self._declared(self.outputs, Outputs))
        tactics = self._declared(self.tactics, List[trtp.AutoTuneCombination], outputs=made)
        trtp.autotune(self.name)(tactics)
        trtp.aot_impl(self.name)(self._declared(self.kernel, Kernel, outputs=made, tactic=int))

    def _declared(self, function: Callable[[Given], Any], returned: Any, **more: Any) -> _Declared:
        kinds: dict[str, Any] = {value.name: trtp.TensorDesc for value in self.op.inputs}
        kinds |= {attribute.name: float for attribute in self.op.attributes} | more
        arguments = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
            for name, kind in kinds.items()
        ]
        return _Declared(function, inspect.Signature(arguments, return_annotation=returned))

    def outputs(self, given: Given) -> Outputs:
        """The output, and the masses of active, parked and new rows."""
        batch, kv_heads, new = (given["k_new"].shape_expr[i] for i in range(3))
        weightings = given[WEIGHTS].shape_expr[1]
        active, parked = (given[name].shape_expr[2] for name in ("k_active", "k_parked"))
        mass_active, mass_parked, mass_new = (
            trtp.from_shape_expr((batch, kv_heads, weightings, rows), trt.float32)
            for rows in (active, parked, new)
        )
        return given["q"].like(), mass_active, mass_parked, mass_new

    def tactics(self, given: Given) -> List[trtp.AutoTuneCombination]:
        """What TensorRT is to time for a profile's numbers of new rows."""
        q = given["q"]
        shape = q.shape
        least, most = (shape.min[2], shape.max[2]) if shape.is_dynamic else (shape[2], shape[2])
        group = q.shape[1] // given["k_new"].shape[1]
        tactics = (_FEW if least * group <= DECODE_ROWS else []) + (
            _MANY if most * group > DECODE_ROWS else []
        )
        types = _types(self.op, _dtype(self.name, q.dtype))
        return [trtp.AutoTuneCombination(types, "LINEAR", tactics)]

    def kernel(self, given: Given) -> Kernel:
        """The kernel of a tactic, and its launch."""
        values = _sizes(self.name, given)
        if "nearness" in given:
            values |= _standing_sizes(self.name, given)
        return _kernel(f"{self.form}_{TACTICS[given['tactic']]}", self.name, given["q"], values)


def _sizes(op: str, given: Given) -> dict[str, Any]:
    """Sizes and scalars of a launch of attention."""
    batch, heads, new, _ = given["q"].shape_expr
    kv_heads = given["k_new"].shape_expr[1]
    group = _constant(op, heads, "H") // _constant(op, kv_heads, "Hkv")
    return {
        "B": batch,
        "Hkv": kv_heads,
        "S": new,
        "A": given["k_active"].shape_expr[2],
        "P": given["k_parked"].shape_expr[2],
        "R": given[WEIGHTS].shape_expr[1],
        "G": trtp.SymInt32(group),
        "scale_bits": trtp.SymInt32(scale_bits(given["scale"])),
        "owners": trtp.SymInt32(1),
    }


def _standing_sizes(op: str, given: Given) -> dict[str, Any]:
    """Those of where rows stand."""
    axes, far = given["nearness"].shape_expr
    count = _constant(op, axes, "X")
    if count > MOST_AXES:
        raise TensorRTError(
            f"{op}: expected positions on at most {MOST_AXES} axes, found {count}; build without "
            "plugins"
        )
    return {"X": axes, "M": far, "F": given["active_standing"].shape_expr[1]}


def _types(op: Op, dtype: str) -> str:
    """Types of an op's inputs and outputs in the framework's notation, T being `dtype`.

    No other type is offered: TensorRT would convert caches to it and back.
    """
    kinds = (dtype if value.dtype == "T" else value.dtype for value in op.inputs + op.outputs)
    return ", ".join(_TRT_NAMES[kind] for kind in kinds)


def _dtype(op: str, found: Any) -> str:
    if found not in _DTYPES:
        raise TensorRTError(
            f"{op}: expected float16 or bfloat16, found {found}; export with --dtype fp16, or "
            "build without plugins"
        )
    return _DTYPES[found]


def _constant(op: str, size: Any, name: str) -> int:
    if not size.is_constant:
        raise TensorRTError(
            f"{op}: expected a fixed {name}, found a dynamic one; give its inputs a fixed {name}"
        )
    return int(size.constant_value())


def _kernel(form: str, op: str, q: trtp.TensorDesc, values: Mapping[str, Any]) -> Kernel:
    """A packaged kernel of attention and its launch for symbolic sizes."""
    width = _constant(op, q.shape_expr[3], "D")
    if width not in HEAD_DIMS:
        raise TensorRTError(
            f"{op}: expected a head_dim of {HEAD_DIMS}, found {width}; build without plugins"
        )
    packaged = kernel(variant_of(form, _dtype(op, q.dtype), width).name, _capability)
    launch = trtp.KernelLaunchParams()
    launch.grid_x, launch.grid_y, launch.grid_z = packaged.variant.grid(values)
    launch.block_x = packaged.threads
    launch.shared_mem = packaged.shared
    scalars = [argument for argument, kind in packaged.arguments if kind == "i32"]
    extra = trtp.SymIntExprs(len(scalars))
    for i, scalar in enumerate(scalars):
        extra[i] = trtp.SymInt32(values[scalar])
    return packaged.entry, packaged.ptx(), launch, extra


for _form, _op in PLUGINS.items():
    _Plugin(_op, _form).register()

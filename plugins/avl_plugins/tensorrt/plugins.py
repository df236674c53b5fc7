"""The plugin, in the form that TensorRT's Python framework reads: by signature and annotation.

Importing this registers it. TensorRT asks for shapes, for the tactics that an optimisation
profile may use, and for one kernel a tactic; what a kernel gets is in the order inputs, scalars,
outputs. There is no workspace, and scalars are 32-bit integers only.
"""

# No postponed annotations: the framework compares the classes themselves.
from collections.abc import Mapping
from typing import Any, List, Tuple, Union  # the framework knows these forms alone

import tensorrt as trt
import tensorrt.plugin as trtp

from avl_plugins.cuda.packaged import kernel
from avl_plugins.errors import TensorRTError
from avl_plugins.kernels.catalog import DECODE_ROWS, HEAD_DIMS, scale_bits, variant_of
from avl_plugins.schema import SPLIT_CACHE_ATTENTION, Op

ATTENTION = f"{SPLIT_CACHE_ATTENTION.domain}::{SPLIT_CACHE_ATTENTION.name}"

# Any of them is right for any number of new rows; TensorRT times those a profile may use. Sliced
# decode spreads one KV head over several programs, for small batches on large GPUs.
TACTICS = {1: "fused_decode", 2: "fused_decode_sliced", 3: "fused_prefill"}
_FEW, _MANY = [1, 2], [3]

_DTYPES = {trt.DataType.HALF: "float16", trt.DataType.BF16: "bfloat16"}
_TRT_NAMES = {"float16": "FP16", "bfloat16": "BF16", "int64": "INT64", "float32": "FP32"}

_capability = 80

Kernel = Tuple[Union[str, bytes], Union[str, bytes], trtp.KernelLaunchParams, trtp.SymExprs]


def built_for(capability: int) -> None:
    """Choose PTX for engines of a compute capability such as 90."""
    global _capability  # noqa: PLW0603  # TensorRT calls the functions below without state of ours
    _capability = capability


@trtp.register(ATTENTION)
def attention(
    q: trtp.TensorDesc,
    k_new: trtp.TensorDesc,
    v_new: trtp.TensorDesc,
    k_active: trtp.TensorDesc,
    v_active: trtp.TensorDesc,
    active_len: trtp.TensorDesc,
    k_parked: trtp.TensorDesc,
    v_parked: trtp.TensorDesc,
    parked_len: trtp.TensorDesc,
    row_weights: trtp.TensorDesc,
    scale: float,
) -> Tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc]:
    batch, kv_heads, new = (k_new.shape_expr[i] for i in range(3))
    weightings = row_weights.shape_expr[1]
    mass_active, mass_parked, mass_new = (
        trtp.from_shape_expr((batch, kv_heads, weightings, rows), trt.float32)
        for rows in (k_active.shape_expr[2], k_parked.shape_expr[2], new)
    )
    return q.like(), mass_active, mass_parked, mass_new


@trtp.autotune(ATTENTION)
def attention_tactics(
    q: trtp.TensorDesc,
    k_new: trtp.TensorDesc,
    v_new: trtp.TensorDesc,
    k_active: trtp.TensorDesc,
    v_active: trtp.TensorDesc,
    active_len: trtp.TensorDesc,
    k_parked: trtp.TensorDesc,
    v_parked: trtp.TensorDesc,
    parked_len: trtp.TensorDesc,
    row_weights: trtp.TensorDesc,
    scale: float,
    outputs: Tuple[trtp.TensorDesc],
) -> List[trtp.AutoTuneCombination]:
    shape = q.shape
    least, most = (shape.min[2], shape.max[2]) if shape.is_dynamic else (shape[2], shape[2])
    group = q.shape[1] // k_new.shape[1]
    tactics = (_FEW if least * group <= DECODE_ROWS else []) + (
        _MANY if most * group > DECODE_ROWS else []
    )
    types = _types(SPLIT_CACHE_ATTENTION, _dtype(ATTENTION, q.dtype))
    return [trtp.AutoTuneCombination(types, "LINEAR", tactics)]


@trtp.aot_impl(ATTENTION)
def attention_kernel(
    q: trtp.TensorDesc,
    k_new: trtp.TensorDesc,
    v_new: trtp.TensorDesc,
    k_active: trtp.TensorDesc,
    v_active: trtp.TensorDesc,
    active_len: trtp.TensorDesc,
    k_parked: trtp.TensorDesc,
    v_parked: trtp.TensorDesc,
    parked_len: trtp.TensorDesc,
    row_weights: trtp.TensorDesc,
    scale: float,
    outputs: Tuple[trtp.TensorDesc],
    tactic: int,
) -> Kernel:
    batch, heads, new, head_dim = q.shape_expr
    group = _constant(ATTENTION, heads, "H") // _constant(ATTENTION, k_new.shape_expr[1], "Hkv")
    width = _constant(ATTENTION, head_dim, "D")
    if width not in HEAD_DIMS:
        raise TensorRTError(
            f"{ATTENTION}: expected a head_dim of {HEAD_DIMS}, found {width}; build without plugins"
        )
    values = {
        "B": batch,
        "Hkv": k_new.shape_expr[1],
        "S": new,
        "A": k_active.shape_expr[2],
        "P": k_parked.shape_expr[2],
        "R": row_weights.shape_expr[1],
        "G": trtp.SymInt32(group),
        "scale_bits": trtp.SymInt32(scale_bits(scale)),
        "owners": trtp.SymInt32(1),
    }
    return _kernel(variant_of(TACTICS[tactic], _dtype(ATTENTION, q.dtype), width).name, values)


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


def _kernel(name: str, values: Mapping[str, Any]) -> Kernel:
    """A packaged kernel and its launch for symbolic sizes."""
    packaged = kernel(name, _capability)
    launch = trtp.KernelLaunchParams()
    launch.grid_x, launch.grid_y, launch.grid_z = packaged.variant.grid(values)
    launch.block_x = packaged.threads
    launch.shared_mem = packaged.shared
    scalars = [argument for argument, kind in packaged.arguments if kind == "i32"]
    extra = trtp.SymIntExprs(len(scalars))
    for i, scalar in enumerate(scalars):
        extra[i] = trtp.SymInt32(values[scalar])
    return packaged.entry, packaged.ptx(), launch, extra

"""The plugins, in the form that TensorRT's Python framework reads: by signature and annotation.

Importing this registers them. TensorRT asks for shapes, for the tactics that an optimisation
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
from avl_plugins.kernels.catalog import DECODE_ROWS, HEAD_DIMS, MOST_AXES, scale_bits, variant_of
from avl_plugins.schema import RESTORED_CACHE_ATTENTION, SPLIT_CACHE_ATTENTION, Op

ATTENTION = f"{SPLIT_CACHE_ATTENTION.domain}::{SPLIT_CACHE_ATTENTION.name}"
RESTORED = f"{RESTORED_CACHE_ATTENTION.domain}::{RESTORED_CACHE_ATTENTION.name}"

# Any of them is right for any number of new rows; TensorRT times those a profile may use. Sliced
# decode spreads one KV head over several programs, for small batches on large GPUs.
TACTICS = {1: "decode", 2: "decode_sliced", 3: "prefill"}
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
    return _outputs(q, k_new, k_active, k_parked, row_weights)


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
    return _tactics(SPLIT_CACHE_ATTENTION, q, k_new)


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
    values = _sizes(ATTENTION, q, k_new, k_active, k_parked, row_weights, scale)
    return _kernel(f"fused_{TACTICS[tactic]}", ATTENTION, q, values)


@trtp.register(RESTORED)
def restored(
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
    nearness: trtp.TensorDesc,
    row_standing: trtp.TensorDesc,
    active_standing: trtp.TensorDesc,
    parked_standing: trtp.TensorDesc,
    scale: float,
) -> Tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc]:
    return _outputs(q, k_new, k_active, k_parked, row_weights)


@trtp.autotune(RESTORED)
def restored_tactics(
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
    nearness: trtp.TensorDesc,
    row_standing: trtp.TensorDesc,
    active_standing: trtp.TensorDesc,
    parked_standing: trtp.TensorDesc,
    scale: float,
    outputs: Tuple[trtp.TensorDesc],
) -> List[trtp.AutoTuneCombination]:
    return _tactics(RESTORED_CACHE_ATTENTION, q, k_new)


@trtp.aot_impl(RESTORED)
def restored_kernel(
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
    nearness: trtp.TensorDesc,
    row_standing: trtp.TensorDesc,
    active_standing: trtp.TensorDesc,
    parked_standing: trtp.TensorDesc,
    scale: float,
    outputs: Tuple[trtp.TensorDesc],
    tactic: int,
) -> Kernel:
    values = _sizes(RESTORED, q, k_new, k_active, k_parked, row_weights, scale)
    axes, far = nearness.shape_expr
    if _constant(RESTORED, axes, "X") > MOST_AXES:
        raise TensorRTError(
            f"{RESTORED}: expected positions on at most {MOST_AXES} axes, found "
            f"{_constant(RESTORED, axes, 'X')}; build without plugins"
        )
    values |= {"X": axes, "M": far, "F": active_standing.shape_expr[1]}
    return _kernel(f"restored_{TACTICS[tactic]}", RESTORED, q, values)


def _outputs(
    q: trtp.TensorDesc,
    k_new: trtp.TensorDesc,
    k_active: trtp.TensorDesc,
    k_parked: trtp.TensorDesc,
    row_weights: trtp.TensorDesc,
) -> Tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc]:
    """The output, and the masses of active, parked and new rows."""
    batch, kv_heads, new = (k_new.shape_expr[i] for i in range(3))
    weightings = row_weights.shape_expr[1]
    mass_active, mass_parked, mass_new = (
        trtp.from_shape_expr((batch, kv_heads, weightings, rows), trt.float32)
        for rows in (k_active.shape_expr[2], k_parked.shape_expr[2], new)
    )
    return q.like(), mass_active, mass_parked, mass_new


def _tactics(op: Op, q: trtp.TensorDesc, k_new: trtp.TensorDesc) -> List[trtp.AutoTuneCombination]:
    """What TensorRT is to time for a profile's numbers of new rows."""
    shape = q.shape
    least, most = (shape.min[2], shape.max[2]) if shape.is_dynamic else (shape[2], shape[2])
    group = q.shape[1] // k_new.shape[1]
    tactics = (_FEW if least * group <= DECODE_ROWS else []) + (
        _MANY if most * group > DECODE_ROWS else []
    )
    types = _types(op, _dtype(f"{op.domain}::{op.name}", q.dtype))
    return [trtp.AutoTuneCombination(types, "LINEAR", tactics)]


def _sizes(
    op: str,
    q: trtp.TensorDesc,
    k_new: trtp.TensorDesc,
    k_active: trtp.TensorDesc,
    k_parked: trtp.TensorDesc,
    row_weights: trtp.TensorDesc,
    scale: float,
) -> dict[str, Any]:
    """Sizes and scalars of a launch of attention."""
    batch, heads, new, _ = q.shape_expr
    group = _constant(op, heads, "H") // _constant(op, k_new.shape_expr[1], "Hkv")
    return {
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

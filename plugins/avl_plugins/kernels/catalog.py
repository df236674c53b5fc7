"""Every kernel that is packaged: how it is compiled, what it is given and how it is launched.

Said once for the compiler, the launches through the CUDA driver, the TensorRT plugins and the
tests. Nothing here needs Triton.
"""

from __future__ import annotations

import ast
import itertools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from avl_plugins.schema import RESTORED_CACHE_ATTENTION, SPLIT_CACHE_ATTENTION

# The ops that are TensorRT plugins, by what their kernels' names begin with.
PLUGINS = {"fused": SPLIT_CACHE_ATTENTION, "restored": RESTORED_CACHE_ATTENTION}
HEAD_DIMS = (64, 80, 96, 128)
DTYPES = ("float16", "bfloat16")
DECODE_ROWS = 16  # packed query rows, new rows times group, that decode steps are tiled for
MOVES = (64, 1024, 4096)  # longest lists of the variants of `update`
MOST_AXES = 3  # of positions that a bias is made of
ROWS = (1024, 4096)  # most rows the variants of the selections rank

# Compute capabilities PTX is made for. Generic PTX serves every later one: the driver assembles it.
CAPABILITIES = (80, 86, 87, 89, 90, 100, 110, 120)

_POINTERS = {
    "T": "q k_new v_new k_active v_active k_parked v_parked out",
    "i64": "active_len parked_len row_standing active_standing parked_standing table source "
    "destination remaining",
    "fp32": "nearness row_weights mass_active mass_parked mass_new",
    "i32": "first_image budget",
    "i8": "image_mask",
}
_POINTER_TYPES = {name: kind for kind, names in _POINTERS.items() for name in names.split()}
_ELEMENTS = {"float16": "fp16", "bfloat16": "bf16"}

# Grids as expressions of dimensions, scalar arguments and constants.
_ATTENTION_GRID = ("cdiv(R, 2) * owners + cdiv(S * G, BM) * cdiv(D, W)", "Hkv", "B")
GRIDS: Mapping[str, tuple[str, str, str]] = {
    "fused": _ATTENTION_GRID,
    "restored": _ATTENTION_GRID,
    "update": ("D // W * 2", "B * Hkv", "L"),
    "select_core": ("B", "L", "1"),
    "select_text": ("Hkv", "B", "L"),
}
# What a launch must keep to, as pairs of such expressions: the first is at most the second.
LIMITS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "update": (("M", "MP"), ("cdiv(D, W) * W", "D")),
    "restored": (("X", str(MOST_AXES)),),
}
MODULES = {"restored": "fused", "select_core": "select", "select_text": "select"}


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel with its compile-time choices.

    Attributes:
        kernel: name of the function; its module is `MODULES` of it, or of the same name.
        dtype: what T is, or None where no argument has it.
        registers: most a thread may have, or None. Left alone, ptxas spills a little to fit more
            programs on a multiprocessor, on some architectures.
        targets: compute capabilities it is compiled for. 80 is generic and serves all others;
            90 is for sm_90a alone, whose matrix instructions generic PTX cannot name.
    """

    name: str
    kernel: str
    dtype: str | None
    head_dim: int | None
    constants: Mapping[str, int]
    warps: int
    stages: int
    registers: int | None = None
    targets: tuple[int, ...] = (80,)

    @property
    def module(self) -> str:
        return f"avl_plugins.kernels.{MODULES.get(self.kernel, self.kernel)}"

    def argument_type(self, argument: str) -> str:
        """Triton's type of a kernel argument, such as "*fp16"; scalars are "i32"."""
        if not argument.endswith("_ptr"):
            return "i32"
        kind = _POINTER_TYPES[argument.removesuffix("_ptr")]
        return f"*{_ELEMENTS[self.dtype] if self.dtype and kind == 'T' else kind}"

    def grid(self, values: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """The grid for `values`, the dimensions and scalars that its expressions name.

        They may be integers or anything else with +, * and //, such as TensorRT's symbolic sizes.
        """
        known = {**self.constants, **values}
        x, y, z = (evaluate(expression, known) for expression in GRIDS[self.kernel])
        return x, y, z

    def beyond(self, values: Mapping[str, int]) -> str | None:
        """The limit that `values` do not keep to, such as "M <= MP = 64, found 65", or None."""
        known = {**self.constants, **values}
        for small, large in LIMITS.get(self.kernel, ()):
            found, most = evaluate(small, known), evaluate(large, known)
            if found > most:
                return f"{small} <= {large} = {most}, found {found}"
        return None


def evaluate(expression: str, values: Mapping[str, Any]) -> Any:
    """The value of an expression of names, whole numbers, +, *, // and cdiv(a, b).

    Raises:
        KeyError: a name without a value.
        ValueError: any other construct.
    """
    return _value(ast.parse(expression, mode="eval").body, values)


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(int(number)):
            return number
        case ast.Name(name):
            return values[name]
        case ast.BinOp(left, operator, right):
            a, b = _value(left, values), _value(right, values)
            match operator:
                case ast.Add():
                    return a + b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv():
                    return a // b
        case ast.Call(ast.Name("cdiv"), [left, right], []):
            a, b = _value(left, values), _value(right, values)
            return (a + (b - 1)) // b
    raise ValueError(f"expected names, numbers, +, *, // and cdiv, found {ast.unparse(node)}")


def scale_bits(scale: float) -> int:
    """The factor on q . k as kernels take it: float32(scale * log2(e)), its bits as an int32.

    TensorRT hands integers to kernels, and no floats.
    """
    return int(struct.unpack("<i", struct.pack("<f", scale * math.log2(math.e)))[0])


def _variants() -> tuple[Variant, ...]:
    made: list[Variant] = []
    for kernel, dtype, head_dim in itertools.product(("fused", "restored"), DTYPES, HEAD_DIMS):
        made += _attention(kernel, dtype, head_dim)
    for moves, warps in zip(MOVES, (4, 8, 16), strict=True):
        made.append(
            Variant(f"update-{moves}", "update", None, None, {"MP": moves, "W": 16}, warps, 1)
        )
    for rows, warps in zip(ROWS, (4, 8), strict=True):
        for kernel in ("select_core", "select_text"):
            constants, limit = {"NP": rows}, 96 if rows == 1024 else 255
            name = f"{kernel}-{rows}"
            made.append(Variant(name, kernel, None, None, constants, warps, 1, limit))
    return tuple(made)


def _attention(kernel: str, dtype: str, head_dim: int) -> list[Variant]:
    restores, padded = kernel == "restored", 1 << (head_dim - 1).bit_length()
    # 16 KB of keys and values in flight a program, and at most 48 KB of shared memory.
    width, wide = {"D": head_dim, "DP": padded}, 64 if padded == 64 else 32
    few = {**width, "BM": DECODE_ROWS, "BN": wide}
    # The bias of 64 rows takes more registers than 4 warps have, and more shared memory on sm_90a.
    many = {**width, "BM": 64, "BN": 32 if restores else wide}

    def variant(name: str, constants: Mapping[str, int], stages: int) -> Variant:
        prefills = constants["BM"] == 64
        targets = (80, 90) if prefills and not restores else (80,)
        limit = 255 if prefills or padded == 64 else None
        warps = 8 if prefills and restores else 4
        full = f"{kernel}_{name}-{_ELEMENTS[dtype]}-d{head_dim}"
        return Variant(full, kernel, dtype, head_dim, constants, warps, stages, limit, targets)

    return [
        variant("decode", {**few, "W": padded}, 3),
        variant("decode_sliced", {**few, "W": 32}, 3),
        variant("prefill", {**many, "W": padded}, 2),
    ]


VARIANTS: Mapping[str, Variant] = {variant.name: variant for variant in _variants()}


def variant_of(kernel: str, dtype: str, head_dim: int) -> Variant:
    """The variant called `kernel` for a type and a head_dim.

    Raises:
        KeyError: there is none.
    """
    return VARIANTS[f"{kernel}-{_ELEMENTS[dtype]}-d{head_dim}"]

"""The ops of avl: names, inputs, outputs, attributes and shapes, said once.

The reference, the ONNX schemas and function bodies, the kernels and the TensorRT plugins all read
them from here. Shapes are named dimensions:

    B batch    H query heads    Hkv KV heads, H = G * Hkv    D head_dim
    S new rows    A capacity of the active rows    P capacity of the parked rows
    R row weightings    E scales of a row, 1    W bytes of a parked row's codes

No dimension may be zero: an empty cache is one row of finite garbage with length 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from avl_plugins.errors import OpError

DOMAIN = "avl"
VERSION = 1

# T: the one floating type of the model. stored: any of FLOATS. codes: INT4 or INT8.
DType = Literal["T", "bool", "int64", "int8", "uint8", "float16", "float32", "stored", "codes"]
FLOATS = ("float32", "float16", "bfloat16")  # what T may be


@dataclass(frozen=True, slots=True)
class Value:
    """One input or output."""

    name: str
    dtype: DType
    shape: tuple[str, ...]
    doc: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a node; all are required."""

    name: str
    kind: Literal["float", "int", "string"]
    doc: str


@dataclass(frozen=True, slots=True)
class Op:
    """One op; every input and output is mandatory, because plugins cannot omit any."""

    name: str
    doc: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attributes: tuple[Attribute, ...] = ()
    domain: str = DOMAIN
    version: int = VERSION


MOST_CODE = 127  # codes are symmetric, -127 to 127
MOST_HALF = 65504.0  # what is larger, of either sign, is kept as this


@dataclass(frozen=True, slots=True)
class Plane:
    """What a row has of one kind: `width` elements of a type."""

    width: int
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class RowType:
    """A way to keep the rows of a cache.

    Attributes:
        name: as users and manifests say it.
        element: of keys and values. "T" is the type that the graph computes in, "int8" a code of 8
            bits.
        scaled: whether each row has one scale for its key and one for its value. Keys are rotated
            before (`rotation`).
        parked_bits: of the codes of parked rows, 4 or 2, where those are kept in fewer bits than
            active ones; values are rotated too then. None: all rows are kept alike.
    """

    name: str
    element: DType
    scaled: bool = False
    parked_bits: int | None = None

    def planes(self, head_dim: int, dtype: np.dtype[Any]) -> tuple[Plane, ...]:
        """What an active row of a head has: key and value, and of codes the scales of the two.

        Args:
            dtype: that the graph computes in.
        """
        kept = dtype if self.element == "T" else np.dtype(self.element)
        scale = Plane(1, np.dtype(np.float32))
        return (Plane(head_dim, kept),) * 2 + (scale, scale) * self.scaled

    def parked(self, head_dim: int, dtype: np.dtype[Any]) -> tuple[Plane, ...]:
        """The same of a parked row."""
        planes = self.planes(head_dim, dtype)
        if self.parked_bits is None:
            return planes
        codes = Plane(head_dim * self.parked_bits // 8, np.dtype(np.uint8))
        return (codes, codes, *planes[2:])

    def fits(self, head_dim: int) -> bool:
        """Whether rows of heads of this size can be kept so: codes fill whole bytes."""
        return self.parked_bits is None or head_dim * self.parked_bits % 8 == 0


COMPUTED = RowType("computed", "T")  # in the type that the graph computes in
FP16 = RowType("fp16", "float16")
INT8 = RowType("int8", "int8", scaled=True)
INT8_INT4 = RowType("int8-int4", "int8", scaled=True, parked_bits=4)
INT8_INT2 = RowType("int8-int2", "int8", scaled=True, parked_bits=2)
ROW_TYPES: Mapping[str, RowType] = {
    kept.name: kept for kept in (COMPUTED, FP16, INT8, INT8_INT4, INT8_INT2)
}


def rotation(head_dim: int) -> npt.NDArray[np.float64]:
    """What queries and keys of codes are multiplied with, [D, D]; orthonormal and symmetric.

    Hadamard's matrix (Sylvester's) of the largest power of two that divides D, along the diagonal.
    """
    block = head_dim & -head_dim
    hadamard = np.ones((1, 1))
    while len(hadamard) < block:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    return np.kron(np.eye(head_dim // block), hadamard / np.sqrt(block))


# What makes TensorRT take the plugin; every other runtime ignores it and takes the function body.
PLUGIN_ATTRIBUTES: Mapping[str, str | int] = {
    "plugin_namespace": DOMAIN,
    "plugin_version": str(VERSION),
    "aot": 1,
}

_NEW = ("B", "Hkv", "S", "D")
_ACTIVE = ("B", "Hkv", "A", "D")
_PARKED = ("B", "Hkv", "P", "D")

SPLIT_CACHE_ATTENTION = Op(
    name="SplitCacheAttention",
    doc=(
        "Attention of S new rows over active rows, parked rows and, causally, themselves. Query "
        "head h reads KV head h // (H / Hkv). The softmax over all keys together is in float32. "
        "mass[b, hkv, r, j] is the mean over the query heads of the group of "
        "sum_s row_weights[b, r, s] * probability[b, h, s, j]; rows at or past a length have "
        "probability and mass 0."
    ),
    inputs=(
        Value("q", "T", ("B", "H", "S", "D"), "queries, rotated"),
        Value("k_new", "T", _NEW, "keys of the new rows, rotated"),
        Value("v_new", "T", _NEW, "values of the new rows"),
        Value("k_active", "T", _ACTIVE, "cached keys read by every step"),
        Value("v_active", "T", _ACTIVE, "cached values read by every step"),
        Value("active_len", "int64", ("B",), "active rows in use, 0 to A"),
        Value("k_parked", "T", _PARKED, "cached keys read by refresh steps"),
        Value("v_parked", "T", _PARKED, "cached values read by refresh steps"),
        Value("parked_len", "int64", ("B",), "parked rows in use, 0 to P"),
        Value("row_weights", "float32", ("B", "R", "S"), "weight of each query row in a mass"),
    ),
    outputs=(
        Value("out", "T", ("B", "H", "S", "D"), "attention output"),
        Value("mass_active", "float32", ("B", "Hkv", "R", "A"), "attention on active rows"),
        Value("mass_parked", "float32", ("B", "Hkv", "R", "P"), "attention on parked rows"),
        Value("mass_new", "float32", ("B", "Hkv", "R", "S"), "attention on the new rows"),
    ),
    attributes=(Attribute("scale", "float", "factor on q . k, usually head_dim ** -0.5"),),
)

# Parts of SplitCacheAttention and not ops of graphs: what CPU kernels take over.
SPLIT_CACHE_STEP = dataclasses.replace(
    SPLIT_CACHE_ATTENTION,
    name="SplitCacheStep",
    doc="SplitCacheAttention of one new row a sequence, S = 1: a decode step.",
)
SPLIT_CACHE_PROMPT = dataclasses.replace(
    SPLIT_CACHE_ATTENTION,
    name="SplitCachePrompt",
    doc="SplitCacheAttention of several new rows a sequence: a chunk of a prompt.",
)


def _kept(kept: RowType, name: str, rows: tuple[str, ...], doc: str) -> tuple[Value, ...]:
    """Keys and values of one place as they are kept, and their scales."""
    scales = (*rows[:3], "E")
    values = (
        Value(f"k_{name}", kept.element, rows, f"{doc} keys{', rotated' * kept.scaled}"),
        Value(f"v_{name}", kept.element, rows, f"{doc} values"),
        Value(f"k_{name}_scale", "float32", scales, f"of {doc} keys"),
        Value(f"v_{name}_scale", "float32", scales, f"of {doc} values"),
    )
    return values if kept.scaled else values[:2]


def _parked(kept: RowType) -> tuple[Value, ...]:
    found = _kept(kept, "parked", _PARKED, "parked")
    if kept.parked_bits is None:
        return found
    packed = (
        dataclasses.replace(value, dtype="uint8", shape=(*_PARKED[:3], "W")) for value in found[:2]
    )
    return (*packed, *found[2:])


def _op_of(kept: RowType, name: str, doc: str) -> Op:
    """SplitCacheAttention of rows that are kept in another way than as computed."""
    return Op(
        name=name,
        doc=doc,
        inputs=(
            *SPLIT_CACHE_ATTENTION.inputs[:3],
            *_kept(kept, "active", _ACTIVE, "active"),
            SPLIT_CACHE_ATTENTION.inputs[5],
            *_parked(kept),
            *SPLIT_CACHE_ATTENTION.inputs[8:],
        ),
        outputs=(*SPLIT_CACHE_ATTENTION.outputs, *_kept(kept, "made", _NEW, "new")),
        attributes=SPLIT_CACHE_ATTENTION.attributes,
    )


HALF_CACHE_ATTENTION = _op_of(
    FP16,
    "HalfCacheAttention",
    (
        "SplitCacheAttention of rows that are kept as numbers of 16 bits (IEEE's binary16): to the "
        "nearest, of equals the even one, and what is too large as the largest. New rows are seen "
        "as they are kept, as later steps see them, and handed back. T is float32."
    ),
)
QUANTIZED_CACHE_ATTENTION = _op_of(
    INT8,
    "QuantizedCacheAttention",
    (
        "SplitCacheAttention of rows that are kept as codes of 8 bits: a key or value is code * "
        "scale, with scale = max|x| / 127 and code = round(x / scale). Queries and keys are turned "
        "first, which changes none of their products, by Hadamard's matrix over the largest power "
        "of two that divides D, repeated along the diagonal, with orthonormal rows. New rows are "
        "seen as their codes say, as later steps see them, and handed back. T is float32."
    ),
)


def _mixed(kept: RowType, bits: int) -> Op:
    return _op_of(
        kept,
        f"QuantizedCacheAttentionParkedInt{bits}",
        (
            "QuantizedCacheAttention whose values are turned as its keys are, and the output back, "
            f"and whose parked rows are codes of {bits} bits: a number is (code - {2**bits - 1} / "
            "2) * scale. Each byte has codes of numbers that lie D / (8 / bits) apart, the first "
            "in its lowest bits."
        ),
    )


# The op of graphs that keep rows in a way.
ROW_OPS: Mapping[str, Op] = {
    COMPUTED.name: SPLIT_CACHE_ATTENTION,
    FP16.name: HALF_CACHE_ATTENTION,
    INT8.name: QUANTIZED_CACHE_ATTENTION,
    INT8_INT4.name: _mixed(INT8_INT4, 4),
    INT8_INT2.name: _mixed(INT8_INT2, 2),
}

# Of encoders, which have no cache.
MUTUAL_ATTENTION = Op(
    name="MutualAttention",
    doc=(
        "Attention of all queries over all keys, as those of a picture's patches, in number K: for "
        "each head out = softmax(scale * q . k^T) . v. Heads of a row lie side by side, as linears "
        "make and take them. A kernel may round q, k, v and the softmax to bf16, or to words of 11 "
        "bits or more with a scale for each row, or block of a row."
    ),
    inputs=tuple(
        Value(name, "T", ("B", rows, "H", "D"), doc)
        for name, rows, doc in (("q", "S", "queries"), ("k", "K", "keys"), ("v", "K", "values"))
    ),
    outputs=(Value("out", "T", ("B", "S", "H", "D"), "attention output"),),
    attributes=(Attribute("scale", "float", "factor on q . k, usually head_dim ** -0.5"),),
)
MASKED_MUTUAL_ATTENTION = dataclasses.replace(
    MUTUAL_ATTENTION,
    name="MaskedMutualAttention",
    doc="MutualAttention over those keys alone that are seen, of which there is one at least.",
    inputs=(*MUTUAL_ATTENTION.inputs, Value("seen", "bool", ("K",), "which keys are seen")),
)


def bind_dims(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of the named dimensions, given the shape of every input of `op`.

    Raises:
        OpError: an input is missing, or its shape does not fit the schema or the other inputs.
    """
    dims: dict[str, int] = {}
    for value in op.inputs:
        if value.name not in shapes:
            raise OpError(f"{op.name}: expected the input {value.name}, found none; pass it")
        shape = shapes[value.name]
        pattern = f"[{', '.join(value.shape)}]"
        if len(shape) != len(value.shape):
            raise OpError(
                f"{op.name}: expected {value.name} {pattern}, found {list(shape)}; "
                f"pass {len(value.shape)} dimensions"
            )
        for name, size in zip(value.shape, shape, strict=True):
            if size < 1:
                raise OpError(
                    f"{op.name}: expected {value.name} {pattern} without empty dimensions, "
                    f"found {list(shape)}; pass one row and length 0 for an empty cache"
                )
            if dims.setdefault(name, size) != size:
                raise OpError(
                    f"{op.name}: expected {name} = {dims[name]} in {value.name} {pattern}, "
                    f"found {list(shape)}; pass inputs that agree"
                )
    if "H" in dims and dims["H"] % dims["Hkv"]:
        raise OpError(
            f"{op.name}: expected query heads in whole groups, found {dims['H']} query heads for "
            f"{dims['Hkv']} KV heads; pass a multiple"
        )
    return dims

"""Weights of quantized checkpoints: as codes where a package holds them, else as floats."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from avl_export.checkpoint.assumed import stored_dtype
from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.packings.packing import WAY_OUT, Layout, Packing
from avl_export.checkpoint.safetensors_header import FETCH_AGAIN, CheckpointError
from avl_export.checkpoint.source import Source
from avl_export.checkpoint.weight_map import Placed, WeightMap
from avl_export.quantize.codes import Dequantized, DequantizedCodes, StoredCodes
from avl_export.quantize.compressed import CompressedCodes
from avl_export.quantize.fp8 import FP8, DequantizedFp8
from avl_export.quantize.gguf import as_floats, gguf_weight
from avl_export.quantize.hqq import DequantizedHqq
from avl_export.quantize.packed import PackedCodes

OF_TORCHAO = {
    "_weight_qdata": "weight",
    "_weight_scale": "weight_scale",
    "_weight_zero_point": "weight_zero_point",
}

Parts = Mapping[str, Source]
# Given the dtype of what is no codes of a package.
Read = Callable[[Packing, tuple[int, int], Parts, str], StoredCodes | Dequantized]


def _packed(packing: Packing, shape: tuple[int, int], parts: Parts, _: str) -> StoredCodes:
    return PackedCodes.of(packing, shape, parts)


def _compressed(
    packing: Packing, shape: tuple[int, int], parts: Parts, dtype: str
) -> StoredCodes | Dequantized:
    if "weight" in parts and parts["weight"].record.dtype == FP8:
        return DequantizedFp8.of(packing, shape, parts, dtype)
    return CompressedCodes.of(packing, shape, parts)


def _torchao(
    packing: Packing, shape: tuple[int, int], parts: Parts, dtype: str
) -> StoredCodes | Dequantized:
    scaled = parts.get("_weight_act_pre_scale")
    if scaled is not None:
        raise CheckpointError(
            f"{scaled.path}: {scaled.key}: expected weights that rows are multiplied with as they "
            f"are, found factors for rows; {WAY_OUT}"
        )
    return _compressed(packing, shape, {OF_TORCHAO[n]: part for n, part in parts.items()}, dtype)


def _hqq(_: Packing, shape: tuple[int, int], parts: Parts, dtype: str) -> Dequantized:
    return DequantizedHqq.of(shape, parts, dtype)


READERS: Mapping[Layout, Read] = {
    "gptq": _packed,
    "awq": _packed,
    "compressed": _compressed,
    "fp8": DequantizedFp8.of,
    "torchao": _torchao,
    "hqq": _hqq,
}
# Parts without which there is no weight; of those in one line one is enough.
NEEDED: Mapping[Layout, Sequence[tuple[str, ...]]] = {
    "gptq": (("qweight",), ("qzeros",), ("scales",)),
    "awq": (("qweight",), ("qzeros",), ("scales",)),
    "compressed": (("weight_packed", "weight"), ("weight_scale",)),
    "fp8": (("weight",), ("weight_scale_inv", "weight_scale")),
    "torchao": (("_weight_qdata",), ("_weight_scale",)),
    "hqq": tuple(
        (part,)
        for part in ("W_q", "scale", "zero", "nbits", "group_size", "shape", "axis", "packing")
    ),
}
ROWS = "rows are looked up one by one"


def plain_source(checkpoint: Checkpoint, placed: Placed) -> Source:
    """A tensor, or some rows of one, as stored."""
    shard, _ = checkpoint.tensors[placed.key]
    return Source(placed.key, checkpoint.shards[shard], placed.record)


def stored_source(
    checkpoint: Checkpoint,
    weights: WeightMap,
    name: str,
    shape: tuple[int, ...],
    floats: bool = False,
) -> Source | StoredCodes:
    """The weight `name` of `shape`.

    Args:
        weights: of the checkpoint.
        floats: whether codes are wanted as what they stand for, in the checkpoint's own dtype, also
            where a package could hold them.

    Raises:
        CheckpointError: it is missing, or its parts do not fit each other.
    """
    parts = weights.packed.get(name)
    if parts is None or checkpoint.packing is None:
        return plain_source(checkpoint, weights.place(name, shape))
    layout = checkpoint.packing.layout
    found = {part: plain_source(checkpoint, placed) for part, placed in parts.items()}
    if layout == "gguf":
        weight = gguf_weight(shape, found)
        misfit = isinstance(weight, StoredCodes) and weight.misfit() is not None
        return as_floats(weight) if floats or misfit else weight
    needed = NEEDED[layout]
    _check_whole(checkpoint, name, shape, needed, parts)
    dtype = stored_dtype(checkpoint.config) or "F16"
    made = READERS[layout](checkpoint.packing, (shape[0], shape[1]), found, dtype)
    if isinstance(made, Dequantized):
        return made
    also = [(part,) for part in checkpoint.packing.also.get(made.bits, ())]
    _check_whole(checkpoint, name, shape, [*needed, *also], parts)
    why = ROWS if floats else made.misfit()
    return made if why is None else DequantizedCodes.of(made, dtype, why)


def _check_whole(
    checkpoint: Checkpoint,
    name: str,
    shape: tuple[int, ...],
    needed: Sequence[tuple[str, ...]],
    parts: Collection[str],
) -> None:
    """Refuse a weight that is none of a linear, or lacks what is needed: of each line one part."""
    missing = [one[0] for one in needed if not any(part in parts for part in one)]
    if missing or len(shape) != 2:
        raise CheckpointError(
            f"{checkpoint.folder}: {name}: expected {', '.join(one[0] for one in needed)} of a "
            f"linear, found no {', '.join(missing) or 'linear'}; {FETCH_AGAIN}"
        )

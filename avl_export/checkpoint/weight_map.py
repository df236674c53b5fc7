"""Where each parameter of a model lies in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import nn

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.places import QuantizedPlace
from avl_export.checkpoint.safetensors_header import CheckpointError, TensorRecord
from avl_export.checkpoint.source import Source
from avl_export.checkpoint.weight_files import some

STORED = ("F32", "F16", "BF16")
ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
UNMERGED = (".lora_A.", ".lora_B.", ".lora_embedding_", ".base_layer.")


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a parameter lies: `location` is relative to the folder that holds the weights.

    `record` tells the bytes of the parameter, which may be some rows of what is stored as `key`.
    `swapped`: its last two axes are stored the other way round.
    """

    key: str
    location: str
    record: TensorRecord
    swapped: bool = False

    @property
    def told(self) -> str:
        """What tells it from other bytes of the checkpoint."""
        return f"{self.key} from byte {self.record.offset}"


@dataclass(frozen=True, slots=True)
class WeightMap:
    """Where each parameter of a model lies, by the parameter's name in the model.

    `packed` holds weights that a quantized checkpoint stores as several tensors, by name and
    suffix (qweight and so on); `linears` those that a package stores as codes, and `rows` tables
    of tokens that it stores so. `strays` are keys that belong to no parameter; `hints` say what may
    be wrong where one is missing.
    """

    folder: Path
    places: Mapping[str, Placed]
    packed: Mapping[str, Mapping[str, Placed]] = field(default_factory=dict)
    linears: Mapping[str, QuantizedPlace] = field(default_factory=dict)
    rows: Mapping[str, QuantizedPlace] = field(default_factory=dict)
    strays: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()

    def key(self, name: str) -> str:
        """What tells stored tensors apart: two parameters may be one tensor."""
        placed = self.places.get(name)
        return name if placed is None or name in self.linears else placed.told

    def table(self, name: str, shape: tuple[int, ...]) -> tuple[str, int]:
        """Key and bytes of the table of tokens `name`.

        Raises:
            CheckpointError: as `place`.
        """
        if name in self.rows:
            return f"{name}.rows", self.rows[name].nbytes
        placed = self.place(name, shape)
        return placed.told, placed.record.nbytes

    def holds_codes(self, name: str) -> bool:
        """Whether a part of the weight `name` is stored as anything else than floats."""
        return any(part.record.dtype not in STORED for part in self.packed.get(name, {}).values())

    def nbytes(self, name: str, shape: tuple[int, ...]) -> int:
        """Bytes that the parameter `name` of `shape` takes.

        Raises:
            CheckpointError: as `place`.
        """
        if name in self.linears:
            return self.linears[name].nbytes
        if name in self.packed:
            return sum(placed.record.nbytes for placed in self.packed[name].values())
        return self.place(name, shape).record.nbytes

    def place(self, name: str, shape: tuple[int, ...]) -> Placed:
        """Where the parameter `name` of `shape` lies.

        Raises:
            CheckpointError: the checkpoint lacks it, or holds another shape or dtype.
        """
        placed = self.places.get(name)
        if placed is None:
            raise CheckpointError(
                f"{self.folder}: {name}: expected a tensor {list(shape)}, found none; "
                "the checkpoint is incomplete or config.json belongs to another one"
                + "".join(f"; {hint}" for hint in self.hints)
            )
        record = placed.record
        stored = (*shape[:-2], *shape[:-3:-1]) if placed.swapped else shape
        if record.shape != stored:
            raise CheckpointError(
                f"{self.folder}: {placed.key}: expected shape {list(stored)} as config.json says, "
                f"found {list(record.shape)}; config.json belongs to another checkpoint"
            )
        if record.dtype not in STORED:
            raise CheckpointError(
                f"{self.folder}: {placed.key}: expected {', '.join(STORED)}, "
                f"found {record.dtype}; save the checkpoint in fp32, fp16 or bf16"
            )
        return placed


def tied_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Parameters that are one tensor, each pair both ways."""
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    return [pair for t, s in tied.items() for pair in ((t, s), (s, t))]


def map_weights(
    checkpoint: Checkpoint, model: nn.Module, locations: Mapping[str, str]
) -> WeightMap:
    """Map every checkpoint key to a parameter with transformers' own renamings.

    Args:
        locations: path of each shard (by its name in the checkpoint) as graphs shall name it.

    Several parameters may be rows of one tensor, as queries, keys and values that are stored
    joined. Other tensors that transformers would have to convert are refused.

    Raises:
        CheckpointError: two keys for one parameter, a key whose tensor has to be converted, or one
            that is left over and changes what a model computes.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    hf = cast(Any, model)
    transforms = get_model_conversion_mapping(hf)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    state = hf.state_dict()
    strays: list[str] = []
    places: dict[str, Placed] = {}
    packed: dict[str, dict[str, Placed]] = {}
    for key, (shard, record) in checkpoint.tensors.items():
        packing = checkpoint.packing
        part = None if packing is None else packing.part_of(key, checkpoint.tensors)
        name, pattern = rename_source_key(
            key if part is None else part[0], renamings, converters, hf.base_model_prefix, state
        )
        if name not in state:
            _check_stray(checkpoint, key)
            strays.append(key)
            continue
        records, swapped = {name: record}, False
        if pattern is not None:
            joined = next(c for c in converters if pattern in c.source_patterns)
            swapped = _may_swap(joined) and record.shape != tuple(state[name].shape)
            records = {} if part is not None else _rows_of(joined, name, record)
        if not records:
            raise CheckpointError(
                f"{checkpoint.folder / shard}: {key}: expected a tensor used as stored, found one "
                "in an older layout; load it with transformers and save it with save_pretrained"
            )
        for name, rows in records.items():
            found = places if part is None else packed.setdefault(name, {})
            own = name if part is None else part[1]
            if own in found or (name in places and part is not None):
                raise CheckpointError(
                    f"{checkpoint.folder / shard}: {key}: expected one key for {name}, found "
                    f"{(found.get(own) or places[name]).key} too; remove one of them"
                )
            found[own] = Placed(key, locations[shard], rows, swapped)
    for here, there in tied_pairs(model):
        if here in places or here in packed:
            continue
        if there in places:
            places[here] = places[there]
        elif there in packed:
            packed[here] = packed[there]
    hints = list(checkpoint.notes)
    if strays:
        hints.insert(0, f"it also holds {some(strays)}, of no weight of {type(hf).__name__}")
    return WeightMap(checkpoint.folder, places, packed, strays=tuple(strays), hints=tuple(hints))


def _may_swap(joined: Any) -> bool:
    """Whether transformers swaps the last two axes of a stack where its shape asks for that.

    Args:
        joined: transformers' WeightConverter for it.
    """
    from transformers.core_model_loading import Transpose

    (operation, *others) = joined.operations
    return (
        isinstance(operation, Transpose)
        and operation.check_dims
        and {operation.dim0, operation.dim1} == {1, 2}
        and not others
    )


def _rows_of(joined: Any, name: str, record: TensorRecord) -> dict[str, TensorRecord]:
    """The rows of a stored tensor that each of several parameters is, by its name.

    Args:
        joined: transformers' WeightConverter for it.
        name: of the first parameter.

    Returns:
        Nothing where it has to be converted in another way.
    """
    from transformers.core_model_loading import Chunk

    if _may_swap(joined):
        return {name: record}
    first, count = joined.target_patterns[0], len(joined.target_patterns)
    (operation, *others) = joined.operations
    equal = isinstance(operation, Chunk) and operation.num_shards_attribute is None and not others
    if not equal or operation.dim != 0 or first not in name:
        return {}
    if not record.shape or record.shape[0] % count:
        return {}
    rows, nbytes = record.shape[0] // count, record.nbytes // count
    return {
        name.replace(first, target): TensorRecord(
            record.dtype, (rows, *record.shape[1:]), record.offset + number * nbytes, nbytes
        )
        for number, target in enumerate(joined.target_patterns)
    }


def _check_stray(checkpoint: Checkpoint, key: str) -> None:
    """Refuse a tensor of no parameter without which others mean something else."""
    where = f"{checkpoint.folder / checkpoint.tensors[key][0]}: {key}"
    if any(mark in key for mark in UNMERGED):
        raise CheckpointError(
            f"{where}: expected a model's own weights, found a LoRA adapter that was saved among "
            "them; save the model after merge_and_unload(), or the adapter alone and pass its "
            "folder with --lora"
        )
    if ONE_EXPERT.search(key):
        packing = checkpoint.packing
        method = "" if packing is None else f" quantized with {packing.method}"
        raise CheckpointError(
            f"{where}: expected the weights of a layer's experts in two stacks, as transformers "
            f"saves them, found one expert's by itself{method}; export the checkpoint that this "
            "one was made from, with --quantize int4 for fewer bytes"
        )
    if checkpoint.told:
        raise CheckpointError(
            f"{where}: expected a tensor of the model that the configuration describes, found one "
            "of another; pass the --config that the file was made from"
        )
    stem, _, suffix = key.rpartition(".")
    codes = (f"{stem}.qweight", f"{stem}.weight_packed", f"{stem}.weight_scale")
    if suffix != "bias" or not any(name in checkpoint.tensors for name in codes):
        return
    if checkpoint.packing is not None and not _is_empty(checkpoint, key):
        raise CheckpointError(
            f"{where}: expected a bias of a layer that has one, or zeros as some GPTQ tools add "
            "them, found a key that maps to none; config.json belongs to another checkpoint, or "
            "this architecture variant is not supported"
        )


def _is_empty(checkpoint: Checkpoint, key: str) -> bool:
    shard, record = checkpoint.tensors[key]
    return not Source(key, checkpoint.shards[shard], record).read(0, record.shape[0]).any()

"""Bind a graph's initializers in place to the checkpoint's safetensors files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import onnx_ir as ir
import torch
from torch import nn

from avl_export.checkpoint import Checkpoint
from avl_export.quantize.nodes import bind_quantized
from avl_export.quantize.packing_config import SUFFIXES
from avl_export.quantize.places import QuantizedPlace
from avl_export.quantize.source import Source
from avl_export.safetensors_header import CheckpointError, TensorRecord
from avl_export.trace import Traced
from avl_runtime.package import Embedding

STORED = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
# Buffers that older transformers versions stored; they are computed from the config.
COMPUTED = r"(rotary_emb\.inv_freq|embeddings\.position_ids)$"


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a parameter lies: `location` is relative to the folder that holds the weights."""

    key: str
    location: str
    record: TensorRecord


@dataclass(frozen=True, slots=True)
class WeightMap:
    """Where each parameter of a model lies, by the parameter's name in the model.

    `packed` holds linears that a GPTQ or AWQ checkpoint stores as several tensors, by name and
    suffix (qweight and so on); `linears` those that a package stores as codes, and `rows` the
    token embedding if it is.
    """

    folder: Path
    places: Mapping[str, Placed]
    packed: Mapping[str, Mapping[str, Placed]] = field(default_factory=dict)
    linears: Mapping[str, QuantizedPlace] = field(default_factory=dict)
    rows: QuantizedPlace | None = None

    def key(self, name: str) -> str:
        """What tells stored tensors apart: two parameters may be one tensor."""
        placed = self.places.get(name)
        return name if placed is None or name in self.linears else placed.key

    def table(self, name: str, shape: tuple[int, ...]) -> tuple[str, int]:
        """Key and bytes of the token embedding `name`.

        Raises:
            CheckpointError: as `place`.
        """
        if self.rows is not None:
            return f"{name}.rows", self.rows.nbytes
        placed = self.place(name, shape)
        return placed.key, placed.record.nbytes

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
            )
        record = placed.record
        if record.shape != shape:
            raise CheckpointError(
                f"{self.folder}: {placed.key}: expected shape {list(shape)} as config.json says, "
                f"found {list(record.shape)}; config.json belongs to another checkpoint"
            )
        if record.dtype not in STORED:
            raise CheckpointError(
                f"{self.folder}: {placed.key}: expected {', '.join(STORED)}, "
                f"found {record.dtype}; save the checkpoint in fp32, fp16 or bf16"
            )
        return placed


def map_weights(
    checkpoint: Checkpoint, model: nn.Module, locations: Mapping[str, str]
) -> WeightMap:
    """Map every checkpoint key to a parameter with transformers' own renamings.

    Args:
        locations: path of each shard (by its name in the checkpoint) as graphs shall name it.

    Raises:
        CheckpointError: a key that belongs to no parameter, two keys for one parameter, or a key
            whose tensor transformers would have to convert.
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
    ignored = "|".join((COMPUTED, *(hf._keys_to_ignore_on_load_unexpected or ())))
    places: dict[str, Placed] = {}
    packed: dict[str, dict[str, Placed]] = {}
    for key, (shard, record) in checkpoint.tensors.items():
        stem, _, suffix = key.rpartition(".")
        is_packed = checkpoint.packing is not None and suffix in SUFFIXES
        named = f"{stem}.weight" if is_packed else key
        name, converter = rename_source_key(
            named, renamings, converters, hf.base_model_prefix, state
        )
        if name not in state:
            if re.search(ignored, key) or _is_empty_bias(checkpoint, key):
                continue
            raise CheckpointError(
                f"{checkpoint.folder / shard}: {key}: expected a weight of {type(hf).__name__}, "
                "found a key that maps to none; config.json belongs to another checkpoint, or "
                "this architecture variant is not supported"
            )
        if converter is not None:
            raise CheckpointError(
                f"{checkpoint.folder / shard}: {key}: expected a tensor used as stored, found one "
                "in an older layout; load it with transformers and save it with save_pretrained"
            )
        found = packed.setdefault(name, {}) if is_packed else places
        own = suffix if is_packed else name
        if own in found or (name in places and is_packed):
            raise CheckpointError(
                f"{checkpoint.folder / shard}: {key}: expected one key for {name}, found "
                f"{(found.get(own) or places[name]).key} too; remove one of them"
            )
        found[own] = Placed(key, locations[shard], record)
    for tied, source in dict(getattr(hf, "all_tied_weights_keys", None) or {}).items():
        for here, there in ((tied, source), (source, tied)):
            if here not in places and there in places:
                places[here] = places[there]
    return WeightMap(checkpoint.folder, places, packed)


def _is_empty_bias(checkpoint: Checkpoint, key: str) -> bool:
    """Whether `key` is the bias of zeros that some GPTQ tools add to layers without one."""
    stem, _, suffix = key.rpartition(".")
    if (
        suffix != "bias"
        or checkpoint.packing is None
        or f"{stem}.qweight" not in checkpoint.tensors
    ):
        return False
    shard, record = checkpoint.tensors[key]
    return not Source(key, checkpoint.shards[shard], record).read(0, record.shape[0]).any()


def embedding(weights: WeightMap, model: nn.Module, embed_tokens: nn.Module) -> Embedding:
    """Where the runtime reads token embeddings."""
    weight = embed_tokens.get_parameter("weight")
    name = next(n for n, p in model.named_parameters() if p is weight)
    rows, columns = weight.shape
    if weights.rows is not None:
        return Embedding(
            file=weights.rows.location,
            offset=weights.rows.codes.offset,
            dtype="I4" if weights.rows.bits == 4 else "I8",
            shape=(rows, columns),
        )
    placed = weights.place(name, (rows, columns))
    return Embedding(
        file=placed.location,
        offset=placed.record.offset,
        dtype=cast(Literal["F32", "F16", "BF16"], placed.record.dtype),
        shape=(rows, columns),
    )


def bind(
    traced: Traced,
    weights: WeightMap,
    constants: Mapping[str, torch.Tensor],
    base: Path,
) -> None:
    """Point every parameter of the traced graph at its bytes.

    A tensor stored in another dtype than the graph computes in stays bound in place, followed by
    one Cast. Buffers in `constants` are written into the graph.

    Args:
        base: the folder that the locations are relative to.

    Raises:
        CheckpointError: see `WeightMap.place`.
    """
    graph = traced.model.graph
    for own, value in list(graph.initializers.items()):
        name = traced.parameters.get(own)
        if name is None:
            continue
        graph.initializers.pop(own)
        value.name = name
        if name in constants:
            value.const_value = ir.tensor(constants[name].numpy(), name=name)
            graph.initializers[name] = value
            continue
        if name in weights.linears:
            bind_quantized(graph, value, name, weights.linears[name], base)
            value.const_value = None
            continue
        shape = tuple(n for n in value.shape or () if isinstance(n, int))
        placed = weights.place(name, shape)
        stored = STORED[placed.record.dtype]
        source = value if stored == value.dtype else _cast(graph, value, stored)
        source.const_value = ir.ExternalTensor(
            placed.location,
            placed.record.offset,
            placed.record.nbytes,
            stored,
            shape=ir.Shape(shape),
            name=name,
            base_dir=base,
        )
        graph.initializers[name] = source


def _cast(graph: ir.Graph, value: ir.Value, stored: ir.DataType) -> ir.Value:
    """A new initializer value of dtype `stored`, cast to the dtype of `value` for all its users."""
    if value.dtype is None:
        raise RuntimeError(f"{value.name}: an initializer without a dtype")
    source = ir.Value(name=value.name, shape=value.shape, type=ir.TensorType(stored))
    node = ir.node("Cast", [source], {"to": value.dtype})
    node.outputs[0].name = f"{value.name}.cast"
    node.outputs[0].shape = value.shape
    node.outputs[0].type = ir.TensorType(value.dtype)
    value.replace_all_uses_with(node.outputs[0])
    value.const_value = None
    graph.insert_before(graph[0], node)
    return source

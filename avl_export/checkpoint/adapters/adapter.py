"""An adapter's tensors, and what they change in a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from avl_export.checkpoint.adapters.changes import Added, LowRank, Reader, Replaced
from avl_export.checkpoint.adapters.config import LoraConfig, read_config
from avl_export.checkpoint.safetensors_header import CheckpointError, TensorRecord, read_header
from avl_export.checkpoint.source import Change, ChangedSource, Source
from avl_export.checkpoint.weight_files import ADAPTER
from avl_export.checkpoint.weight_files import ADAPTER_CONFIG as CONFIG
from avl_export.checkpoint.weight_map import STORED, tied_pairs

PREFIX = "base_model.model."
PICKLE = "adapter_model.bin"
# Between a factor's name and its kind stands the adapter's own name in some files.
FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|"
    r"lora_magnitude_vector)(?:\.(?!weight$|bias$)(?P<name>[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
WRAPPED = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.(?:weight|bias)$)")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter for one model.

    Attributes:
        changes: what becomes of parameters, by name, in the order in which it is done.
    """

    folder: Path
    changes: Mapping[str, tuple[Change, ...]]

    def source(self, name: str, stored: Source) -> Source:
        """The tensor `stored` of the parameter `name`, changed if the adapter changes it."""
        for change in self.changes.get(name, ()):
            stored = ChangedSource(stored.key, stored.path, stored.record, stored, change)
        return stored

    def apply(self, model: nn.Module) -> nn.Module:
        """Change the weights of `model`, transformers' in fp32 on the CPU, one by one."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, changes in self.changes.items():
                rows = parameters[name].shape[0]
                for change in changes:
                    before = parameters[name].numpy()
                    held = _Held(name, self.folder, _record(parameters[name]), before)
                    after = change.rows(before.copy(), 0, rows, held)
                    parameters[name].copy_(torch.from_numpy(after))
        return model


@dataclass(frozen=True, slots=True, eq=False)
class _Held(Source):
    """A tensor in memory, read as a stored one is."""

    values: Any

    def read_floats(self, first: int, last: int) -> Any:
        return self.values[first:last]


def _record(parameter: torch.Tensor) -> TensorRecord:
    return TensorRecord("F32", tuple(parameter.shape), 0, 4 * parameter.numel())


def open_adapter(folder: Path, model: nn.Module) -> Adapter:
    """The adapter in `folder`, for the family's `model` on the meta device.

    Reads headers only. Two tied matrices of `model` are untied where the adapter changes one.

    Raises:
        CheckpointError: it is damaged, of another kind than LoRA, or of another model.
    """
    config, reader = read_config(folder), Reader()
    tensors = _tensors(folder)
    factors: dict[str, dict[str, Source]] = {}
    changes: dict[str, list[Change]] = {}
    rename = _Names(model, folder)
    for key, source in tensors.items():
        own = key.removeprefix(PREFIX)
        found = FACTOR.fullmatch(own)
        if found is None:
            name = rename.parameter(WRAPPED.sub("", own), key)
            rename.check_shape(name, source)
            changes.setdefault(name, []).insert(0, Replaced(source))
            continue
        part = found["part"] + (".bias" if found["leaf"] == "bias" else "")
        parts = factors.setdefault(found["module"], {})
        if part in parts:
            raise CheckpointError(
                f"{folder / ADAPTER}: {key}: expected one adapter, found two for one module; save "
                "the one that counts by itself"
            )
        parts[part] = source
    for module, parts in factors.items():
        for name, change in _changes(config, module, parts, rename, reader):
            changes.setdefault(name, []).append(change)
    if not changes:
        raise CheckpointError(
            f"{folder / ADAPTER}: expected LoRA tensors, found none; save it again"
        )
    _untie(model, changes, config)
    return Adapter(folder, {name: tuple(made) for name, made in changes.items()})


def _tensors(folder: Path) -> dict[str, Source]:
    path = folder / ADAPTER
    if not path.is_file():
        found = (
            f"only {PICKLE}, which can run code when read"
            if (folder / PICKLE).is_file()
            else ("none")
        )
        raise CheckpointError(
            f"{path}: expected the adapter's weights beside {CONFIG}, found {found}; save it with "
            "PEFT's save_pretrained(safe_serialization=True) where you trust it"
        )
    tensors = {}
    for key, record in read_header(path).items():
        if record.dtype not in STORED or not record.shape:
            raise CheckpointError(
                f"{path}: {key}: expected {', '.join(STORED)}, found {record.dtype} "
                f"{list(record.shape)}; save the adapter in fp32, fp16 or bf16"
            )
        tensors[key] = Source(key, path.resolve(), record)
    return tensors


class _Names:
    """Names of a model's parameters for an adapter's keys, by transformers' own renamings."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        hf = cast(Any, model)
        transforms = get_model_conversion_mapping(hf)
        self._renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self._converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self._prefix, self._state = hf.base_model_prefix, hf.state_dict()
        self._model, self._path = type(hf).__name__, folder / ADAPTER
        self._embeddings = {
            f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Embedding)
        }

    def parameter(self, name: str, key: str) -> str:
        """The parameter that `name`, of the adapter's tensor `key`, stands for."""
        from transformers.core_model_loading import rename_source_key

        found, converter = rename_source_key(
            name, self._renamings, self._converters, self._prefix, self._state
        )
        if found not in self._state or converter is not None:
            raise CheckpointError(
                f"{self._path}: {key[:120]}: expected a tensor for a weight of {self._model}, "
                "found one that belongs to none; the adapter is another model's, or of a kind "
                "that cannot be merged here"
            )
        return str(found)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def is_embedding(self, name: str) -> bool:
        return name in self._embeddings

    def check_shape(self, name: str, source: Source, expected: tuple[int, ...] = ()) -> None:
        """Refuse a tensor of another shape than the parameter's, or than `expected`."""
        wanted = expected or self.shape(name)
        if source.record.shape != wanted:
            raise CheckpointError(
                f"{self._path}: {source.key[:120]}: expected shape {list(wanted)}, found "
                f"{list(source.record.shape)}; the adapter is of another model, or its embedding "
                "was resized: merge it with PEFT and export the merged model"
            )

    def incomplete(self, module: str, part: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: {module[:120]}: expected {part} of the adapter with what else it has "
            "of this module, found none; save the adapter again"
        )


def _changes(
    config: LoraConfig, module: str, parts: Mapping[str, Source], names: _Names, reader: Reader
) -> list[tuple[str, Change]]:
    """What the factors of one module change."""
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    kind = "lora_embedding_" if embedding else "lora_"
    for part in (f"{kind}A", f"{kind}B", *(["lora_magnitude_vector"] if config.dora else [])):
        if part not in parts:
            raise names.incomplete(module, part)
    a, b = parts[f"{kind}A"], parts[f"{kind}B"]
    weight = names.parameter(f"{module}.weight", a.key)
    modules = (weight.removesuffix(".weight"), module)
    rank, (rows, *rest) = config.rank_of(modules), names.shape(weight)
    if embedding != names.is_embedding(weight):
        raise names.incomplete(module, "lora_A" if embedding else "lora_embedding_A")
    if embedding:
        names.check_shape(weight, a, (rank, rows))
        names.check_shape(weight, b, (*rest, rank))
    else:
        names.check_shape(weight, a, (rank, *rest))
        names.check_shape(weight, b, (rows, rank, *(1 for _ in rest[1:])))
    magnitude = parts.get("lora_magnitude_vector")
    if magnitude is not None:
        count = rest[0] if embedding else rows
        flat = tuple(n for n in magnitude.record.shape if n != 1) or (1,)
        if flat != (count,):
            names.check_shape(weight, magnitude, (count,))
    scale = config.scale_of(modules)
    made: list[tuple[str, Change]] = [(weight, LowRank(a, b, scale, magnitude, embedding, reader))]
    for part, source in parts.items():
        if part == "lora_B.bias":
            bias = names.parameter(f"{module}.bias", source.key)
            names.check_shape(bias, source)
            made.append((bias, Added(source, scale)))
        elif part.endswith(".bias"):
            raise names.incomplete(module, "no bias of lora_A")
    return made


def _untie(model: nn.Module, changes: Mapping[str, object], config: LoraConfig) -> None:
    from avl_export.checkpoint.tied import untie

    for name, other in tied_pairs(model):
        if name not in changes:
            continue
        if config.ties:
            raise CheckpointError(
                f"{config.folder / CONFIG}: expected an adapter that changes each matrix by "
                "itself, found ensure_weight_tying with a tied embedding; merge it with PEFT and "
                "export the merged model"
            )
        tied = getattr(model, "all_tied_weights_keys", {})
        untie(model, name if name in tied else other)

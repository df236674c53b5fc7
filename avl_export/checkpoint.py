"""A Hugging Face checkpoint folder: its JSON files and where each tensor lies."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from avl_export.safetensors_header import (
    FETCH_AGAIN,
    CheckpointError,
    TensorRecord,
    read_header,
)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BUNDLED = {"avl-tiny": Path(__file__).parent / "models" / "avl-tiny"}
HUB_IDS = {
    "llava-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-13b": "llava-hf/llava-1.5-13b-hf",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint.

    `shards` maps the name a shard has in the checkpoint to its real file (the hub's cache holds
    links); `tensors` maps a key to its shard's name and record.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    shards: dict[str, Path]
    tensors: dict[str, tuple[str, TensorRecord]]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(record.nbytes for _, record in self.tensors.values())

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in `name`, {} if there is no such file.

        Raises:
            CheckpointError: the file holds anything but a JSON object.
        """
        path = self.folder / name
        return _read_json(path) if path.is_file() else {}


def resolve(model: str) -> Path:
    """The local folder that `model` (an alias, a folder or a hub id) stands for.

    Nothing is downloaded: a hub id is looked up in huggingface_hub's cache only.

    Raises:
        CheckpointError: there is no such folder.
    """
    if model in BUNDLED:
        folder = BUNDLED[model]
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder}: expected the bundled model {model}, found none; install avl again"
            )
        return folder
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    hub_id = HUB_IDS.get(model, model)
    cached = _cached(hub_id) if hub_id.count("/") == 1 and not path.is_absolute() else None
    if cached is None:
        aliases = ", ".join((*BUNDLED, *HUB_IDS))
        raise CheckpointError(
            f"{model}: expected a checkpoint folder, an alias ({aliases}) or a hub id already in "
            "the local cache, found none; download it (hf download ORG/NAME) and pass its folder"
        )
    return cached


def open_checkpoint(model: str) -> Checkpoint:
    """Open the checkpoint that `model` stands for; reads JSON and headers, never weights.

    Raises:
        CheckpointError: config.json or safetensors files are missing, damaged or cut short.
    """
    folder = resolve(model)
    config = _read_json(folder / "config.json")
    if "quantization_config" in config:
        raise CheckpointError(
            f"{folder}: expected fp32, fp16 or bf16 weights, found a quantized checkpoint; "
            "export the original one"
        )
    shards = {name: (folder / name).resolve() for name in _shard_names(folder)}
    tensors: dict[str, tuple[str, TensorRecord]] = {}
    for name, path in shards.items():
        if not path.is_file():
            raise CheckpointError(
                f"{folder / name}: expected a shard named in {INDEX}, found none; {FETCH_AGAIN}"
            )
        for key, record in read_header(path).items():
            if key in tensors:
                raise CheckpointError(
                    f"{folder / name}: {key}: expected each key once, found it in "
                    f"{tensors[key][0]} too; {FETCH_AGAIN}"
                )
            tensors[key] = (name, record)
    return Checkpoint(_model_name(model, folder), folder, config, shards, tensors)


def _model_name(model: str, folder: Path) -> str:
    if model in BUNDLED or model in HUB_IDS:
        return model
    if Path(model).expanduser().is_dir():
        return folder.resolve().name
    return model.rsplit("/", 1)[-1]


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def _shard_names(folder: Path) -> list[str]:
    index = folder / INDEX
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: expected a weight_map; {FETCH_AGAIN}")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
                raise CheckpointError(
                    f"{index}: expected shards inside the folder, found {name!r}; "
                    "do not use this checkpoint"
                )
        return names
    if (folder / SINGLE).is_file():
        return [SINGLE]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth"})
    if pickles:
        raise CheckpointError(
            f"{folder}: expected .safetensors weights, found only {pickles[0]}, which can run "
            "code when read; save it with save_pretrained(safe_serialization=True) where you "
            "trust it"
        )
    raise CheckpointError(f"{folder}: expected {SINGLE} or {INDEX}, found neither; {FETCH_AGAIN}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: expected a Hugging Face checkpoint with {path.name}, found none; "
            "pass the folder that holds it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected a JSON object, found {str(error)[:80]}; {FETCH_AGAIN}"
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object; {FETCH_AGAIN}")
    return value


def weights_root(checkpoint: Checkpoint) -> Path:
    """The nearest folder above every shard's real file."""
    parents = [str(path.parent) for path in checkpoint.shards.values()]
    return Path(os.path.commonpath(parents))

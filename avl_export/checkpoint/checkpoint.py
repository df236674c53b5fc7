"""A Hugging Face checkpoint folder: its JSON files and where each tensor lies."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avl_export.checkpoint import hub
from avl_export.checkpoint.aliases import BUNDLED, HUB_IDS, Files, known_files, stand_ins
from avl_export.checkpoint.json_files import read_object
from avl_export.checkpoint.model_names import is_path, misfit, no_config
from avl_export.checkpoint.packings.choose import packing_of
from avl_export.checkpoint.packings.packing import Packing
from avl_export.checkpoint.safetensors_header import (
    FETCH_AGAIN,
    CheckpointError,
    TensorRecord,
    read_header,
)
from avl_export.checkpoint.supported import check_supported
from avl_export.checkpoint.weight_files import (
    ADAPTER_CONFIG,
    SINGLE,
    aside_note,
    no_weights,
    pickles,
    some,
    weight_files,
)

TOKENIZER = "tokenizer.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint.

    `shards` maps the name a shard has in the checkpoint to its real file (the hub's cache holds
    links); `tensors` maps a key to its shard's name and record. Both are empty until
    `open_weights`.

    `hub_id` is set where missing files can be fetched from the hub. `missing` names the files
    that an export needs and this machine lacked: only a dry run goes on without them, on
    `stand_ins`, JSON files that avl knows of this checkpoint (`built_in`) or of a relative.

    `packing` is set where weights already are quantized; `config` then is the one without it.

    `notes` are lines that people shall read: which of its files were left aside. `adapter` is the
    folder of an adapter that shall be merged into its weights. `told` is what weight files say of
    the decoder themselves, by transformers' names, which `config` has to agree with.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    shards: Mapping[str, Path] = field(default_factory=dict)
    tensors: Mapping[str, tuple[str, TensorRecord]] = field(default_factory=dict)
    hub_id: str | None = None
    built_in: bool = False
    missing: tuple[str, ...] = ()
    stand_ins: Files = field(default_factory=dict)
    packing: Packing | None = None
    notes: tuple[str, ...] = ()
    adapter: Path | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(record.nbytes for _, record in self.tensors.values())

    @property
    def config_is(self) -> str:
        """Where its JSON files come from."""
        if not self.built_in:
            return "checkpoint"
        return "GGUF" if self.told else "built-in"

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in `name`, {} if there is no such file.

        Raises:
            CheckpointError: the file holds anything but a JSON object.
        """
        path = self.folder / name
        if path.is_file() and not self.built_in:
            return read_object(path)
        return dict(self.stand_ins.get(name, {}))


def open_checkpoint(model: str) -> Checkpoint:
    """Open the checkpoint that `model` stands for; reads JSON and headers, never weights.

    Raises:
        CheckpointError: config.json or safetensors files are missing, damaged or cut short.
    """
    return open_weights(find_checkpoint(model))


def find_checkpoint(model: str, revision: str | None = None, dry_run: bool = False) -> Checkpoint:
    """What `model` (an alias, a folder or a hub id) stands for, without its weights.

    A hub id's small files are fetched unless they are in the hub's cache. A dry run goes on
    where files are missing, and takes an alias that is not in the cache from what avl knows of
    it, without a network.

    Raises:
        CheckpointError: there is none, or its config.json is damaged, or of a model quantized in a
            way that is not read.
        HubError: it could not be fetched.
    """
    hub_id, folder = None, BUNDLED.get(model)
    listed: Collection[str] = ()
    if folder is not None and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: expected the bundled model {model}, found none; install avl again"
        )
    if folder is None:
        folder = folder_of(model)
    if folder is not None and revision is not None:
        raise CheckpointError(
            f"{model}: expected a hub id with --revision, found a folder; leave --revision out"
        )
    if folder is None:
        hub_id = HUB_IDS.get(model, model)
        if not hub.is_hub_id(hub_id):
            raise CheckpointError(misfit(model))
        folder = hub.find(hub_id, revision)
        if folder is None and revision is None and model not in HUB_IDS and is_path(model):
            raise CheckpointError(misfit(model))
        if folder is None and dry_run and model in HUB_IDS:
            return _built_in(model, hub_id)
        if folder is None or (_missing(folder) and not (dry_run and model in HUB_IDS)):
            folder, listed = _fetch(hub_id, revision, folder, dry_run)
    elif not (folder / "config.json").is_file():
        raise CheckpointError(no_config(folder))
    config = _config(folder)
    packing = packing_of(config, folder)
    if packing is not None:
        # transformers would want the tools that made the codes, even for a model without weights.
        config = {key: value for key, value in config.items() if key != "quantization_config"}
    missing = _missing(folder, listed)
    return Checkpoint(
        name=model_name(model),
        folder=folder,
        config=config,
        hub_id=hub_id,
        missing=missing,
        stand_ins=stand_ins(config, missing) if dry_run and missing else {},
        packing=packing,
        notes=() if packing is None else packing.notes,
    )


def open_weights(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with its shards and tensors, fetched first where the hub has them.

    Raises:
        CheckpointError: a shard is missing, damaged or cut short.
        HubError: it could not be fetched.
    """
    folder = checkpoint.folder
    if checkpoint.hub_id is not None and _missing_shards(folder):
        listed = hub.listing(checkpoint.hub_id, folder)  # may name what comes before an index
        hub.fetch_weights(checkpoint.hub_id, folder, _missing_shards(folder, listed), listed)
    files = weight_files(folder, _config(folder))
    if not files.shards:
        raise no_weights(folder)
    shards = {name: (folder / name).resolve() for name in files.shards}
    tensors: dict[str, tuple[str, TensorRecord]] = {}
    twice: dict[str, str] = {}
    for name, path in shards.items():
        if not path.is_file():
            raise CheckpointError(
                f"{folder / name}: expected a shard named in {files.index or 'config.json'}, "
                f"found none; {FETCH_AGAIN}"
            )
        for key, record in read_header(path).items():
            if key in tensors:
                twice[key] = tensors[key][0]
            tensors[key] = (name, record)
    missing = tuple(name for name in checkpoint.missing if not name.endswith(".safetensors"))
    notes = [line for line in (aside_note(files), _twice_note(twice, tensors)) if line]
    return replace(
        checkpoint,
        shards=shards,
        tensors=tensors,
        missing=missing,
        notes=(*checkpoint.notes, *notes),
    )


def _twice_note(
    twice: Mapping[str, str], tensors: Mapping[str, tuple[str, TensorRecord]]
) -> str | None:
    """One line about tensors of an earlier shard that a later one holds too."""
    if not twice:
        return None
    earlier = some(sorted(set(twice.values())))
    return (
        f"tensors of {earlier} lie in a later shard too, which counts as by transformers; left "
        f"aside: {some(list(twice))}"
    )


def weights_root(checkpoint: Checkpoint) -> Path:
    """The nearest folder above every shard's real file."""
    parents = [str(path.parent) for path in checkpoint.shards.values()]
    return Path(os.path.commonpath(parents))


def lacks_weights(checkpoint: Checkpoint) -> bool:
    """Whether a dry run has to go by the config, as shards are missing."""
    return any(name.endswith(".safetensors") for name in checkpoint.missing)


def _built_in(alias: str, hub_id: str) -> Checkpoint:
    files = known_files(alias)
    processors = tuple(name for name in files if "processor_config" in name)
    return Checkpoint(
        name=alias,
        folder=Path(hub_id),
        config=dict(files["config.json"]),
        hub_id=hub_id,
        built_in=True,
        missing=("config.json", "*.safetensors", TOKENIZER, *processors),
        stand_ins=files,
    )


def _fetch(
    hub_id: str, revision: str | None, found: Path | None, dry_run: bool
) -> tuple[Path, Collection[str]]:
    """Complete what the cache holds; without a connection, whole weights are good enough.

    Returns the snapshot and, for a dry run that lacks weights, what the hub has besides.
    """
    try:
        folder = hub.fetch_small(hub_id, revision)
    except hub.HubError:
        if found is None or (_missing_shards(found) and not dry_run):
            raise
        return found, ()
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{hub_id}: expected a model, found an adapter alone; fetch it with 'hf download', and "
            "name its base with --model and its folder with --lora"
        )
    if not (folder / "config.json").is_file():
        raise hub.HubError(no_config(hub_id, hub.listing(hub_id, folder)))
    # Before what its weights are is looked at: of other layouts they often are pickles.
    check_supported(folder, _config(folder))
    if not dry_run or not _missing_shards(folder):
        return folder, ()
    listed = hub.listing(hub_id, folder)
    hub.check_listed(hub_id, listed, _missing_shards(folder, listed))
    return folder, listed


def folder_of(model: str) -> Path | None:
    """The folder that `model` names, None if it names none."""
    try:
        folder = Path(model).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # a name too long for a file, or a home that nobody has
        return None


def _missing(folder: Path, listed: Collection[str] = ()) -> tuple[str, ...]:
    """Files that an export needs and `folder` lacks."""
    missing = _missing_shards(folder, listed)
    if not (folder / TOKENIZER).is_file():
        missing += (TOKENIZER,)
    if not any((folder / name).is_file() for name in PROCESSORS):
        missing += (PROCESSORS[0],)
    return missing


def _missing_shards(folder: Path, listed: Collection[str] = ()) -> tuple[str, ...]:
    """Shards that `folder` lacks, where the hub has the files `listed`."""
    found = weight_files(folder, _config(folder), listed).shards
    if not found and not pickles(folder):
        return (SINGLE,)
    return tuple(name for name in found if not (folder / name).is_file())


def _config(folder: Path) -> dict[str, Any]:
    """The configuration that counts: config.json may name one for newer transformers."""
    config = read_object(folder / "config.json")
    named = config.get("configuration_files")
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        return config
    from transformers.configuration_utils import get_configuration_file

    chosen = str(get_configuration_file(named))
    if chosen == "config.json" or Path(chosen).name != chosen:
        return config
    return read_object(folder / chosen)


def model_name(model: str) -> str:
    """What to call `model`: the alias, the hub's name for it, or the folder's own."""
    path = folder_of(model)
    if model in BUNDLED or model in HUB_IDS:
        return model
    if path is None:
        return model.rstrip("/").rsplit("/", 1)[-1]
    place = path.resolve()
    repository = place.parent.parent.name  # models--ORG--NAME/snapshots/REVISION in a hub cache
    if place.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rsplit("--", 1)[-1]
    return place.name

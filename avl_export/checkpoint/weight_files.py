"""Which files of a checkpoint hold its weights, in the order in which transformers looks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from avl_export.checkpoint.json_files import read_object
from avl_export.checkpoint.model_names import broken_link, entries, kinds
from avl_export.checkpoint.safetensors_header import FETCH_AGAIN, CheckpointError
from avl_plugins.errors import quoted, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXPLICIT = "transformers_weights"  # config.json may name the file itself
PICKLES = (".bin", ".pt", ".pth", ".bin.index.json")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"  # weights of another kind, which lie beside a model's
# What else may hold a model's weights, by the names that tools give such files.
OTHERS = ("*.safetensors", "*.safetensors.index*.json", "pytorch_model*.bin*")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of a checkpoint that count.

    Attributes:
        shards: their names in the checkpoint, sorted; () if there are none.
        index: the file that names them, None for a single file.
        aside: files of the folder that hold or name weights and are not read.
    """

    shards: tuple[str, ...]
    index: str | None
    aside: tuple[str, ...]


def weight_files(
    folder: Path, config: Mapping[str, Any], listed: Collection[str] = ()
) -> WeightFiles:
    """Choose the files: the one that config.json names, model.safetensors, or an index's shards.

    Args:
        listed: files that the hub has besides, which would come before those at hand.

    Raises:
        CheckpointError: an index is damaged, or names files outside the folder.
    """
    explicit = config.get(EXPLICIT)
    single, index = SINGLE, INDEX
    if isinstance(explicit, str):
        _check_inside(folder / "config.json", explicit)
        single = index = explicit
        if not explicit.endswith((".safetensors", ".safetensors.index.json")):
            raise CheckpointError(
                f"{folder / 'config.json'}: expected {EXPLICIT} to name a .safetensors file or its "
                f"index, found {quoted(explicit)}; fix the file"
            )
    there = (folder / single).is_file() or single in listed or isinstance(explicit, str)
    if not single.endswith(".json") and there:
        return WeightFiles((single,), None, _others(folder, {single}))
    if (folder / index).is_file():
        shards = _indexed(folder / index)
        return WeightFiles(shards, index, _others(folder, {*shards, index}))
    return WeightFiles((), None, _others(folder, set()))


def pickles(folder: Path) -> list[str]:
    """Files of `folder` that can run code when read."""
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(PICKLES))


def aside_note(files: WeightFiles) -> str | None:
    """One line about files that are not read, None where there are none."""
    if not files.aside or not files.shards:
        return None
    read = files.shards[0] if files.index is None else f"the shards of {files.index}"
    return f"weights are read from {read}, as transformers does; left aside: {some(files.aside)}"


def no_weights(folder: Path) -> CheckpointError:
    """Why `folder` has no weights that count."""
    if link := broken_link(folder, SINGLE, INDEX):
        return CheckpointError(
            f"{folder}: expected {SINGLE} or {INDEX}, found {link} as a link that leads to no "
            f"file; {FETCH_AGAIN}"
        )
    found = pickles(folder)
    if found:
        return CheckpointError(
            f"{folder}: expected .safetensors weights, found only {found[0]}, which can run "
            "code when read; save it with save_pretrained(safe_serialization=True) where you "
            "trust it"
        )
    others = _others(folder, set())
    if others:
        return CheckpointError(
            f"{folder}: expected {SINGLE} or {INDEX}, found only {some(others)}; rename the file "
            f"to {SINGLE}, or fetch the index of its shards"
        )
    for kind in kinds(entries(folder)):
        return CheckpointError(
            f"{folder}: expected {SINGLE} or {INDEX}, found {kind.what} ({shown(kind.name)}); "
            f"{kind.advice}"
        )
    return CheckpointError(f"{folder}: expected {SINGLE} or {INDEX}, found neither; {FETCH_AGAIN}")


def some(names: Collection[str], most: int = 3) -> str:
    """The first of `names`, each cut short, and how many more there are."""
    first = [shown(name, 90) for name in list(names)[:most]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(first) + more


def _others(folder: Path, read: Collection[str]) -> tuple[str, ...]:
    found = (path.name for path in folder.iterdir() if path.name not in {ADAPTER, *read})
    return tuple(sorted(n for n in found if any(fnmatchcase(n, other) for other in OTHERS)))


def _indexed(index: Path) -> tuple[str, ...]:
    """The shards that an index names."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected a weight_map; {FETCH_AGAIN}")
    found = sorted({str(name) for name in weight_map.values()})
    for name in found:
        _check_inside(index, name)
    return tuple(found)


def _check_inside(where: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise CheckpointError(
            f"{where}: expected shards inside the folder, found {quoted(name)}; "
            "do not use this checkpoint"
        )

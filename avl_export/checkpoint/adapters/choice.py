"""Which adapter an export merges, and into which model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avl_export.checkpoint.aliases import BUNDLED, HUB_IDS
from avl_export.checkpoint.checkpoint import folder_of
from avl_export.checkpoint.hub import is_hub_id
from avl_export.checkpoint.json_files import read_object
from avl_export.checkpoint.model_names import is_file
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_export.checkpoint.weight_files import ADAPTER_CONFIG as CONFIG
from avl_export.checkpoint.weight_files import INDEX, SINGLE, pickles
from avl_plugins.errors import quoted, shown


@dataclass(frozen=True, slots=True)
class Choice:
    """A model, and the folder of the adapter for it.

    `note` is a line for people where they did not name the adapter; `revision` is the one of a
    base on the hub that the adapter names.
    """

    model: str
    adapter: Path | None = None
    note: str | None = None
    revision: str | None = None


def choose(model: str, lora: Path | None) -> Choice:
    """What `model`, which may be an adapter's folder, and --lora stand for.

    As by transformers, an adapter beside a model's weights is applied, and one alone names its
    base.

    Raises:
        CheckpointError: there is no adapter, more than one, or no base.
    """
    folder = None if model in BUNDLED else folder_of(model)
    if folder is not None and not (folder / CONFIG).is_file():
        folder = None
    adapter = None
    if lora is not None:
        adapter = folder_of(str(lora))
        if adapter is None or not (adapter / CONFIG).is_file():
            raise CheckpointError(
                f"--lora {shown(lora, 120)}: expected an adapter's folder with {CONFIG}, found "
                f"{_instead(lora, adapter)}"
            )
        if folder is not None and not adapter.samefile(folder):
            raise CheckpointError(
                f"{shown(folder, 160)}: expected one adapter, found {CONFIG} there beside the one "
                f"of --lora; move it away, or leave --lora out"
            )
    if folder is None:
        return Choice(model, adapter)
    if _has_weights(folder):
        return Choice(model, folder, f"{CONFIG} lies beside the weights: its adapter is merged")
    base, revision = _base(folder)
    at = "" if revision is None else f" at {shown(revision, 60)}"
    note = f"the adapter in {folder} is merged into its base, {shown(base, 120)}{at}"
    return Choice(base, folder, note, revision)


def adapted_name(model: str, adapter: Path) -> str:
    """What to call `model` with the adapter in the folder `adapter` merged."""
    own = adapter.resolve().name
    return model if own == model else f"{model}+{own}"


def _has_weights(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    named = any((folder / name).is_file() for name in (SINGLE, INDEX))
    # Other pickles are training's: its arguments, an optimizer's state.
    return named or any(name.startswith("pytorch_model") for name in pickles(folder))


def _instead(lora: Path, folder: Path | None) -> str:
    """What there is where an adapter shall be, and what to do."""
    if folder is not None:
        inner = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        if inner:
            return f"one in {shown(', '.join(inner), 90)}; pass the folder inside that is meant"
        return "none; check the path"
    if is_file(lora):
        return "a file; pass the folder that holds it"
    if is_hub_id(str(lora)):
        return (
            "no such folder; check the path, or fetch an adapter of the hub with "
            f"'hf download {shown(lora, 60)}' and pass the folder that this prints"
        )
    return "no such folder; check the path"


def _base(folder: Path) -> tuple[str, str | None]:
    """The model that the adapter in `folder` was trained on, and its revision on the hub."""
    config = read_object(folder / CONFIG)
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    way_out = "name the base with --model and this folder with --lora"
    if not isinstance(named, str) or not named:
        raise CheckpointError(
            f"{folder}: expected a model's weights, found an adapter whose {CONFIG} names no base; "
            f"{way_out}"
        )
    found = folder_of(named)
    if found is not None:
        if (found / CONFIG).is_file():
            raise CheckpointError(
                f"{folder / CONFIG}: expected a model as base_model_name_or_path, found another "
                f"adapter's folder {quoted(named, 120)}; merge that one first"
            )
        return named, None
    if named in BUNDLED:
        return named, None
    if named in HUB_IDS or is_hub_id(named):
        return named, revision if isinstance(revision, str) and revision else None
    raise CheckpointError(
        f"{folder}: expected the base of the adapter at base_model_name_or_path, found no "
        f"{quoted(named, 120)}; {way_out}"
    )

"""Which adapter an export merges, and into which model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avl_export.aliases import BUNDLED, HUB_IDS
from avl_export.checkpoint import folder_of
from avl_export.hub import is_hub_id
from avl_export.json_files import read_object
from avl_export.safetensors_header import CheckpointError
from avl_export.weight_files import ADAPTER_CONFIG as CONFIG
from avl_export.weight_files import INDEX, SINGLE, pickles
from avl_plugins.errors import shown


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
    here = folder is not None and (folder / CONFIG).is_file()
    if lora is not None:
        named, lora = lora, folder_of(str(lora))
        if lora is None or not (lora / CONFIG).is_file():
            raise CheckpointError(
                f"--lora {shown(named, 160)}: expected an adapter's folder with {CONFIG}, found "
                f"{_instead(named if lora is None else lora)}"
            )
        if folder is not None and here and not lora.samefile(folder):
            raise CheckpointError(
                f"{shown(folder, 160)}: expected one adapter, found {CONFIG} there beside the one "
                f"of --lora; move it away, or leave --lora out"
            )
    if folder is None or not here:
        return Choice(model, lora)
    if _has_weights(folder):
        return Choice(model, folder, f"{CONFIG} lies beside the weights: its adapter is merged")
    base, revision = _base(folder)
    at = "" if revision is None else f" at {shown(revision, 60)}"
    note = f"the adapter in {folder} is merged into its base, {base[:120]}{at}"
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


def _instead(lora: Path) -> str:
    """What there is where an adapter shall be, and what to do."""
    try:
        if not lora.is_dir():
            if is_hub_id(str(lora)):
                return (
                    "no such folder; check the path, or fetch an adapter of the hub with "
                    f"'hf download {shown(lora, 60)}' and pass the folder that this prints"
                )
            return "no such folder; check the path"
        inner = sorted(path.parent.name for path in lora.glob(f"*/{CONFIG}"))
    except (OSError, ValueError):
        inner = []
    if inner:
        return f"one in {shown(', '.join(inner), 90)}; pass the folder inside that is meant"
    return "none; check the path"


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
                f"adapter's folder {named[:120]!r}; merge that one first"
            )
        return named, None
    if named in BUNDLED:
        return named, None
    if named in HUB_IDS or is_hub_id(named):
        return named, revision if isinstance(revision, str) and revision else None
    raise CheckpointError(
        f"{folder}: expected the base of the adapter at base_model_name_or_path, found no "
        f"{named[:120]!r}; {way_out}"
    )

"""Which adapter an export merges, and into which model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avl_export.aliases import BUNDLED, HUB_IDS
from avl_export.hub import is_hub_id
from avl_export.json_files import read_object
from avl_export.safetensors_header import CheckpointError
from avl_export.weight_files import ADAPTER_CONFIG as CONFIG
from avl_export.weight_files import INDEX, SINGLE, pickles


@dataclass(frozen=True, slots=True)
class Choice:
    """A model, and the folder of the adapter for it.

    `note` is a line for people where they did not name the adapter.
    """

    model: str
    adapter: Path | None = None
    note: str | None = None


def choose(model: str, lora: Path | None) -> Choice:
    """What `model`, which may be an adapter's folder, and --lora stand for.

    As by transformers, an adapter beside a model's weights is applied, and one alone names its
    base.

    Raises:
        CheckpointError: there is no adapter, more than one, or no base.
    """
    folder = Path(model).expanduser()
    here = model not in BUNDLED and folder.is_dir() and (folder / CONFIG).is_file()
    if lora is not None:
        lora = lora.expanduser()
        if not (lora / CONFIG).is_file():
            raise CheckpointError(
                f"--lora {str(lora)[:160]}: expected an adapter's folder with {CONFIG}, found "
                "none; check the path"
            )
        if here and not lora.samefile(folder):
            raise CheckpointError(
                f"{str(folder)[:160]}: expected one adapter, found {CONFIG} there beside the one "
                f"of --lora; move it away, or leave --lora out"
            )
    if not here:
        return Choice(model, lora)
    if _has_weights(folder):
        return Choice(model, folder, f"{CONFIG} lies beside the weights: its adapter is merged")
    base = _base(folder)
    return Choice(base, folder, f"the adapter in {folder} is merged into its base, {base[:120]}")


def adapted_name(model: str, adapter: Path) -> str:
    """What to call `model` with the adapter in the folder `adapter` merged."""
    own = adapter.resolve().name
    return model if own == model else f"{model}+{own}"


def _has_weights(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    named = any((folder / name).is_file() for name in (SINGLE, INDEX))
    return named or any(not name.startswith("adapter_") for name in pickles(folder))


def _base(folder: Path) -> str:
    """The model that the adapter in `folder` was trained on."""
    named = read_object(folder / CONFIG).get("base_model_name_or_path")
    way_out = "name the base with --model and this folder with --lora"
    if not isinstance(named, str) or not named:
        raise CheckpointError(
            f"{folder}: expected a model's weights, found an adapter whose {CONFIG} names no base; "
            f"{way_out}"
        )
    found = Path(named).expanduser()
    if found.is_dir():
        if (found / CONFIG).is_file():
            raise CheckpointError(
                f"{folder / CONFIG}: expected a model as base_model_name_or_path, found another "
                f"adapter's folder {named[:120]!r}; merge that one first"
            )
        return named
    if named in HUB_IDS or named in BUNDLED or is_hub_id(named):
        return named
    raise CheckpointError(
        f"{folder}: expected the base of the adapter at base_model_name_or_path, found no "
        f"{named[:120]!r}; {way_out}"
    )

"""Check a package that is there already, layer by layer, against its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from avl_export.aliases import BUNDLED, HUB_IDS
from avl_export.check import CheckError
from avl_export.checkpoint import open_checkpoint
from avl_export.families import load_family
from avl_export.layer_check import check_layers
from avl_export.layer_table import Row
from avl_export.streamed import checkpoint_loader
from avl_runtime.package import MANIFEST, Package, load_package


def recheck(folder: Path, model: str | None, tell: Callable[[Row], None]) -> list[Row]:
    """Compare the package in `folder` with the checkpoint that it was made from.

    Args:
        model: the checkpoint; None to find it by what the manifest says.
        tell: hears of each row when it is known.

    Raises:
        CheckError: a layer differs; or the checkpoint is another one, or not to be found.
        PackageError: the package or its weights are damaged.
    """
    package = load_package(folder)
    package.check_shards()
    for entry in package.manifest.files:
        package.read(entry.path)
    if package.manifest.quantization is not None:
        raise CheckError(
            f"{folder}: expected a package without quantized weights, found some; check it when "
            "it is made, with avl-export --quantize ... --check --layers"
        )
    checkpoint = open_checkpoint(model or _model(package))
    family = load_family(checkpoint, torch.float32)
    if (family.name, family.traits.dims) != (package.manifest.family, package.manifest.dims):
        raise CheckError(
            f"{folder}: expected the checkpoint that it was made from, found {checkpoint.name} "
            "of another family or size; name the right one with --model"
        )
    return check_layers(package, family, checkpoint_loader(checkpoint, family.model), tell)


def _model(package: Package) -> str:
    """The alias that the package was made from, or the folder that its weights lie in."""
    name, weights = package.manifest.model, package.manifest.weights.folder
    if name in BUNDLED or name in HUB_IDS:
        return name
    if weights is not None and (Path(weights) / "config.json").is_file():
        return weights
    raise CheckError(
        f"{package.folder / MANIFEST}: expected weights in their checkpoint's folder, found none "
        "there; name the checkpoint with --model"
    )

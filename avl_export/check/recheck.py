"""Check a package that is there already: layer by layer, or on a backend tensor by tensor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from avl_export.check.adapted import merged_reference
from avl_export.check.check import CheckError
from avl_export.check.compare import compare_backends
from avl_export.check.compare_reference import compare_with_transformers
from avl_export.check.layer_check import check_layers
from avl_export.check.layer_table import Row
from avl_export.check.quantized import dequantized_model
from avl_export.check.runners import load_runner
from avl_export.check.streamed import checkpoint_loader
from avl_export.checkpoint.adapters.adapter import Adapter, open_adapter
from avl_export.checkpoint.adapters.choice import choose
from avl_export.checkpoint.aliases import BUNDLED, HUB_IDS
from avl_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from avl_export.families import Family, load_family
from avl_runtime.package.package import MANIFEST, Package, load_package
from avl_runtime.package.shard_files import Compared


def recheck(
    folder: Path,
    model: str | None,
    tell: Callable[[Row], None],
    lora: Path | None = None,
) -> list[Row]:
    """Compare the package in `folder` with the checkpoint that it was made from.

    Args:
        model: the checkpoint; None to find it by what the manifest says.
        lora: the folder of the adapter that was merged, unless `model` is it.
        tell: hears of each row when it is known.

    Raises:
        CheckError: a layer differs; or the checkpoint is another one, or not to be found.
        PackageError: the package or its weights are damaged.
    """
    package, compared = _whole(folder)
    if package.manifest.quantization is not None:
        raise CheckError(
            f"{folder}: expected a package without quantized weights, found some; check it when "
            "it is made, with avl-export --quantize ... --check --layers"
        )
    checkpoint, family, adapter = _original(package, model, lora)
    _say(compared)
    load = checkpoint_loader(checkpoint, family.model, adapter)
    return check_layers(package, family, load, tell)


def recheck_backends(
    folder: Path,
    backends: Sequence[str],
    model: str | None,
    tell: Callable[[Row], None],
    lora: Path | None = None,
) -> list[Row]:
    """Compare what backends compute of the package in `folder`, tensor by tensor.

    Of quantized weights transformers is given what the codes stand for.

    Args:
        backends: one, to compare with transformers; or two, the second with the first.
        model, lora: as in `recheck`; needed only for transformers.
        tell: hears of the worst output of each run of a graph.

    Raises:
        CheckError: an output differs; or the checkpoint is another one, or not to be found.
        BackendError: a backend cannot run the package on this machine.
        PackageError: the package or its weights are damaged.
    """
    package, compared = _whole(folder)
    *reference, tested = (load_runner(name, package) for name in backends)
    if reference:
        _say(compared)
        return compare_backends(package, reference[0], tested, tell)
    checkpoint, family, adapter = _original(package, model, lora)
    _say(compared)
    if package.manifest.quantization is not None and checkpoint.packing is not None:
        transformers = dequantized_model(package, family, packed=True)
    else:
        transformers = merged_reference(family, adapter)
        if package.manifest.quantization is not None:
            transformers = dequantized_model(package, family, False, transformers)
    return compare_with_transformers(package, family, transformers, tested, tell)


def _whole(folder: Path) -> tuple[Package, Compared]:
    """The package in `folder`, every file as it was written; and what of its weights was read."""
    package = load_package(folder)
    recorded = all(shard.sha256 is not None for shard in package.manifest.weights.shards)
    compared = package.check_shards(whole=recorded)
    for entry in package.manifest.files:
        package.read(entry.path)
    return package, compared


def _say(compared: Compared) -> None:
    print(f"avl-export: {compared.text()}", file=sys.stderr)


def _original(
    package: Package, model: str | None, lora: Path | None
) -> tuple[Checkpoint, Family, Adapter | None]:
    """The checkpoint that a package was made from, and the adapter that was merged into it."""
    choice = choose(model or (str(lora) if lora is not None else _model(package)), lora)
    merged = package.manifest.adapter
    if (merged is None) != (choice.adapter is None):
        found = "none" if choice.adapter is None else f"that in {choice.adapter}"
        expected = "no adapter" if merged is None else f"the adapter {merged}, which it has merged"
        raise CheckError(
            f"{package.folder}: expected {expected}, found {found}; name the checkpoint with "
            "--model and its adapter with --lora"
        )
    checkpoint = open_checkpoint(choice.model)
    family = load_family(checkpoint, torch.float32)
    if (family.name, family.traits.dims) != (package.manifest.family, package.manifest.dims):
        raise CheckError(
            f"{package.folder}: expected the checkpoint that it was made from, found "
            f"{checkpoint.name} of another family or size; name the right one with --model"
        )
    adapter = None if choice.adapter is None else open_adapter(choice.adapter, family.model)
    return checkpoint, family, adapter


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

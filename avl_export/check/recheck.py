"""Check a package that is there already: whole, layer by layer, or on backends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from avl_export.check.compare import (
    Report,
    check_dtype,
    check_package,
    compare_backends,
    compare_with_transformers,
)
from avl_export.check.layers import check_layers
from avl_export.check.reference import checkpoint_loader, read_reference
from avl_export.check.runners import load_runner
from avl_export.check.table import CheckError, Row
from avl_export.checkpoint.adapters.adapter import Adapter, open_adapter
from avl_export.checkpoint.adapters.choice import choose
from avl_export.checkpoint.aliases import BUNDLED, HUB_IDS
from avl_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from avl_export.checkpoint.gguf.open import names_gguf, open_gguf
from avl_export.families import Family, load_family
from avl_runtime.package.package import MANIFEST, Package, load_package
from avl_runtime.package.shard_files import Compared


def recheck(
    folder: Path,
    tell: Callable[[Row], None],
    layers: bool = False,
    backends: Sequence[str] = (),
    model: str | None = None,
    lora: Path | None = None,
    mmproj: Path | None = None,
    config: str | None = None,
) -> Report:
    """Compare the package in `folder` with the checkpoint that it was made from.

    Of quantized weights transformers is given what the codes stand for.

    Args:
        tell: hears of each layer; of outputs, of the worst of each run or graph.
        layers: whether to check layer by layer, without a backend.
        backends: one, to compare with transformers; two, to compare the second with the first,
            which needs no checkpoint; none, to compare the graphs as they are.
        model: the checkpoint; None to find it by what the manifest says.
        lora: the folder of the adapter that was merged, unless `model` is it.
        mmproj, config: as `open_gguf` takes them, where `model` is a GGUF file.

    Raises:
        CheckError: something differs; or the checkpoint is another one, or not to be found.
        BackendError: a backend cannot run the package on this machine.
        PackageError: the package or its weights are damaged.
    """
    package, compared = _whole(folder)
    if layers and package.manifest.quantization is not None:
        raise CheckError(
            f"{folder}: expected a package without quantized weights, found some; check it when "
            "it is made, with avl-export --quantize ... --check --layers"
        )
    if not backends:
        check_dtype(package, "" if layers else ", or name a backend that runs it with --backend")
    runners = [load_runner(name, package) for name in backends]
    if len(runners) == 2:
        _say(compared)
        return Report(compare_backends(package, runners[0], runners[1], tell))
    checkpoint, family, adapter = _original(package, model, lora, mmproj, config)
    _say(compared)
    if layers:
        load = checkpoint_loader(checkpoint, family.model, adapter)
        return Report(check_layers(package, family, load, tell))
    reference = read_reference(package, family, checkpoint, adapter)
    if not runners:
        return check_package(package, reference, tell)
    rows = compare_with_transformers(package, reference, runners[0], tell)
    return Report(rows, reference.quantization)


def _whole(folder: Path) -> tuple[Package, Compared]:
    """The package in `folder`, every file as it was written; and what of its weights was read."""
    package = load_package(folder)
    recorded = all(shard.sha256 is not None for shard in package.manifest.weights.shards)
    compared = package.check_shards(whole=recorded)
    for entry in package.manifest.files:
        package.read(entry.path)
    return package, compared


def _say(compared: Compared) -> None:
    print(f"avl-check: {compared.text()}", file=sys.stderr)


def _original(
    package: Package,
    model: str | None,
    lora: Path | None,
    mmproj: Path | None,
    config: str | None,
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
    if names_gguf(choice.model):
        checkpoint = open_gguf(choice.model, mmproj, config)
    else:
        checkpoint = open_checkpoint(choice.model)
    family = load_family(checkpoint, torch.float32)
    if (family.name, family.decoder.dims) != (package.manifest.family, package.manifest.dims):
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
        "there; name the checkpoint with --model, a GGUF file with --mmproj as well"
    )

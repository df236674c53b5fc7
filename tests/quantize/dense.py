"""What a quantized checkpoint must compute: transformers with the weights that its codes mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from avl_export.check.compare import check_package
from avl_export.check.reference import Reference, tensors
from avl_export.check.walk import check_prompt
from avl_export.checkpoint.checkpoint import open_checkpoint
from avl_export.families import load_family
from avl_export.quantize.packaged import read_packaged
from avl_export.quantize.reading import read_weight
from avl_runtime.package.package import load_package
from quantize.conftest import Exported

DECODER = "language_model.layers."  # before the names of its weights in a package
Change = Callable[[dict[str, torch.Tensor]], None]


def write_quantized(
    source: Path,
    folder: Path,
    quantization_config: Mapping[str, Any],
    pack: Callable[[str, torch.Tensor, dict[str, torch.Tensor]], torch.Tensor | None],
    change: Change | None = None,
) -> dict[str, torch.Tensor]:
    """The checkpoint `source` with some weights quantized, in `folder`.

    Args:
        pack: is given a matrix's key, its values and the other tensors; puts what it is stored as
            among these and returns what that means, or None where it stays as it is.
        change: changes the tensors before they are saved.

    Returns:
        the floating-point weights that the codes stand for, by the checkpoint's keys.
    """
    folder.mkdir()
    for file in source.iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    found, meant = load_file(source / "model.safetensors"), {}
    for key in [k for k, t in found.items() if t.dim() == 2 and ".layers." in k]:
        weight = found.pop(key)
        stands_for = pack(key, weight, found)
        if stands_for is None:
            found[key] = weight
        else:
            meant[key] = stands_for
    if change is not None:
        change(found)
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": dict(quantization_config)}
    path.write_text(json.dumps(config))
    return meant


def dense_checkpoint(source: Path, folder: Path, meant: Mapping[str, torch.Tensor]) -> Path:
    """`source` with the weights that the codes stand for."""
    shutil.copytree(source, folder)
    found = load_file(source / "model.safetensors")
    save_file({**found, **meant}, folder / "model.safetensors", {"format": "pt"})
    return folder


def assert_holds(exported: Exported, meant: Mapping[str, torch.Tensor]) -> None:
    """The decoder's weights in a package are those that are `meant`, bit for bit."""
    packaged = read_packaged(load_package(exported.folder))
    found = {
        **{n: read_weight(exported.folder, place) for n, place in packaged.linears.items()},
        **{
            n: source.read_floats(0, source.record.shape[0]) for n, source in packaged.plain.items()
        },
    }
    own = {name.partition(DECODER)[2]: weight for name, weight in found.items() if DECODER in name}
    expected = {k.partition("layers.")[2]: t for k, t in meant.items() if "language_model" in k}
    assert expected.keys() <= own.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(own[name], weight.float().numpy())


def assert_computes(
    exported: Exported, source: Path, packed: Path, meant: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Logits are those of `source` with the weights that are `meant`.

    Returns:
        those weights, by the names of transformers' parameters.
    """
    dense = packed.with_name(f"{packed.name}-dense")
    reference = LlavaForConditionalGeneration.from_pretrained(
        dense_checkpoint(source, dense, meant),
        dtype=torch.float32,
        attn_implementation="eager",
    ).eval()
    package = load_package(exported.folder)
    family = load_family(open_checkpoint(str(packed)), torch.float32)
    report = check_package(package, Reference(tensors(family, reference, check_prompt(package))))
    assert report.logits <= 2e-5 * report.logit_scale
    assert report.logit_scale > 0.5
    return {name: parameter.detach() for name, parameter in reference.named_parameters()}

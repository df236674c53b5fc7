"""Check a quantized package: its graphs exactly, its weights against the checkpoint's.

Graphs are compared with transformers run on the very weights that the codes stand for, so that
only an error of the exporter can show. What quantization itself changes is reported beside it.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from avl_export.check.check import (
    CheckError,
    Report,
    check_package,
    reference_logits,
    reference_model,
)
from avl_export.checkpoint.tied import untie_as
from avl_export.families import Family
from avl_export.quantize.packaged import Packaged, read_packaged
from avl_export.quantize.packed import PackedSource
from avl_export.quantize.reading import read_weight
from avl_export.quantize.store import Store
from avl_runtime.package.package import Package

# Rounding to 4 bits moves a weight matrix by about a tenth of its norm; another matrix differs by
# more than its whole norm.
WEIGHT_TOLERANCE = 0.5


def check_quantized(
    package: Package, family: Family, store: Store, reference: nn.Module | None = None
) -> Report:
    """Run the comparison.

    Args:
        reference: transformers' model with the weights behind the codes, the checkpoint's if None.

    Raises:
        CheckError: as `check_package`; also if codes do not stand for the checkpoint's weights.
    """
    if any(isinstance(source, PackedSource) for source in store.sources.values()):
        return check_package(package, family, dequantized_model(package, family, packed=True))
    model = reference or reference_model(family)
    before = reference_logits(package, family, model)
    model = dequantized_model(package, family, packed=False, reference=model)
    after = reference_logits(package, family, model)
    report = check_package(package, family, model)
    return replace(report, quantization=float(np.abs(after - before).max()))


def dequantized_model(
    package: Package, family: Family, packed: bool, reference: nn.Module | None = None
) -> nn.Module:
    """transformers' model in fp32 with the weights that the codes of `package` stand for.

    Args:
        package: one with quantized weights.
        packed: whether the checkpoint holds codes itself, which transformers cannot read: then the
            other weights too are the package's, otherwise they are the checkpoint's.
        reference: what takes the weights on, the checkpoint's `reference()` if None.

    Raises:
        CheckError: transformers cannot read the checkpoint; or codes do not stand for its weights.
    """
    packaged = read_packaged(package)
    if packed:
        return _from_package(package, family, packaged)
    model = reference or reference_model(family)
    parameters, table, _ = _untied(model)
    with torch.no_grad():
        for name, place in packaged.linears.items():
            _replace(name, parameters[name], read_weight(package.folder, place))
        if packaged.embedding is not None:
            name, place = packaged.embedding
            _replace(name, table, read_weight(package.folder, place))
    return model


def _replace(name: str, parameter: torch.Tensor, weight: np.ndarray[Any, Any]) -> None:
    found = torch.from_numpy(weight)
    error = float(torch.linalg.vector_norm(found - parameter))
    size = float(torch.linalg.vector_norm(parameter))
    if not error <= WEIGHT_TOLERANCE * size:
        raise CheckError(
            f"expected codes that stand for {name}, found a difference of {error:.1e} from a "
            f"weight of norm {size:.1e}; report it with the checkpoint's name"
        )
    parameter.copy_(found)


def _untied(model: Any) -> tuple[dict[str, nn.Parameter], nn.Parameter, str]:
    """Parameters by name; a token embedding that no longer is the output matrix too, its name."""
    parameters = dict(model.named_parameters())
    embedding = model.get_input_embeddings()
    name = next(key for key, value in parameters.items() if value is embedding.weight)
    embedding.weight = nn.Parameter(embedding.weight.detach().clone())
    return parameters, embedding.weight, name


def _from_package(package: Package, family: Family, packaged: Packaged) -> nn.Module:
    """The model in fp32 on the CPU with the weights of the package."""
    meta = cast(Any, family.model)
    config = copy.deepcopy(meta.config)
    model = type(meta)._from_config(config, dtype=torch.float32, attn_implementation="eager")
    untie_as(model, family.model)
    parameters, table, embedding = _untied(model)
    with torch.no_grad():
        for name, source in packaged.plain.items():
            stored = torch.from_numpy(source.read_floats(0, source.record.shape[0]))
            parameters[name].copy_(stored)
            if name == embedding:
                table.copy_(stored)
        for name, place in packaged.linears.items():
            parameters[name].copy_(torch.from_numpy(read_weight(package.folder, place)))
    return cast(nn.Module, model.eval())

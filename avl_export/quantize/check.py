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

from avl_export.check import (
    CheckError,
    Report,
    check_package,
    reference_logits,
    reference_model,
)
from avl_export.families import Family
from avl_export.quantize.packed import PackedSource
from avl_export.quantize.reading import read_weight
from avl_export.quantize.source import Source
from avl_export.quantize.store import Store
from avl_runtime.package import Package

# Rounding to 4 bits moves a weight matrix by about a tenth of its norm; another matrix differs by
# more than its whole norm.
WEIGHT_TOLERANCE = 0.5


def check_quantized(package: Package, family: Family, store: Store) -> Report:
    """Run the comparison.

    Raises:
        CheckError: as `check_package`; also if codes do not stand for the checkpoint's weights.
    """
    if any(isinstance(source, PackedSource) for source in store.sources.values()):
        return check_package(package, family, _from_package(package, family, store))
    model = reference_model(family)
    before = reference_logits(package, family, model)
    parameters, table = _untied(model)
    with torch.no_grad():
        for name, place in store.linears.items():
            _replace(name, parameters[name], read_weight(package.folder, place))
        if store.rows is not None:
            _replace(store.embedding, table, read_weight(package.folder, store.rows))
    after = reference_logits(package, family, model)
    report = check_package(package, family, model)
    return replace(report, quantization=float(np.abs(after - before).max()))


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


def _untied(model: Any) -> tuple[dict[str, nn.Parameter], nn.Parameter]:
    """Parameters by name, and a token embedding that no longer is the output matrix too."""
    parameters = dict(model.named_parameters())
    embedding = model.get_input_embeddings()
    embedding.weight = nn.Parameter(embedding.weight.detach().clone())
    return parameters, embedding.weight


def _from_package(package: Package, family: Family, store: Store) -> nn.Module:
    """The model in fp32 on the CPU with the weights of the package."""
    meta = cast(Any, family.model)
    config = copy.deepcopy(meta.config)
    model = type(meta)._from_config(config, dtype=torch.float32, attn_implementation="eager")
    parameters, table = _untied(model)
    with torch.no_grad():
        for name, plain in store.plain.items():
            path = package.folder / store.files[1].name
            stored = Source(name, path, plain.record).read_floats(0, plain.record.shape[0])
            parameters[name].copy_(torch.from_numpy(stored))
            if name == store.embedding:
                table.copy_(torch.from_numpy(stored))
        for name, place in store.linears.items():
            parameters[name].copy_(torch.from_numpy(read_weight(package.folder, place)))
    return cast(nn.Module, model.eval())

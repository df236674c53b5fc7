"""What a package with quantized weights holds, found in the headers of its own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avl_export.checkpoint.places import QuantizedPlace
from avl_export.checkpoint.safetensors_header import CheckpointError, TensorRecord, read_header
from avl_export.checkpoint.source import Source
from avl_export.quantize.store import PLAIN, ROWS
from avl_runtime.package.package import Package

BITS: Mapping[str, Literal[4, 8]] = {"int4": 4, "int8": 8}  # by how names of codes end


@dataclass(frozen=True, slots=True)
class Packaged:
    """The weights of a package, as `Store` planned them.

    Attributes:
        linears: places of codes by the parameter's name in the model.
        rows: places of codes of tables whose rows are looked up, by name.
        plain: the other weights, by name.
    """

    linears: Mapping[str, QuantizedPlace]
    rows: Mapping[str, QuantizedPlace]
    plain: Mapping[str, Source]


def read_packaged(package: Package) -> Packaged:
    """Find every weight of a quantized package.

    Raises:
        CheckpointError: a file is damaged, or the package is not quantized.
    """
    if package.manifest.quantization is None:
        raise CheckpointError(
            f"{package.folder}: expected a package with quantized weights, found none; export with "
            "--quantize"
        )
    linears, rows = dict[str, QuantizedPlace](), dict[str, QuantizedPlace]()
    plain = dict[str, Source]()
    for shard in package.manifest.weights.shards:
        path = package.folder / shard.path
        tensors = read_header(path)
        if shard.path == PLAIN:
            plain |= {name: Source(name, path, record) for name, record in tensors.items()}
            continue
        for name in tensors:
            stem, _, kind = name.rpartition(".")
            if kind in BITS:
                place = _place(path, stem, tensors, BITS[kind])
                if stem.endswith(ROWS):
                    rows[stem.removesuffix(ROWS)] = place
                else:
                    linears[stem] = place
    return Packaged(linears, rows, plain)


def _place(
    path: Path, stem: str, tensors: Mapping[str, TensorRecord], bits: Literal[4, 8]
) -> QuantizedPlace:
    codes, scales = tensors[f"{stem}.int{bits}"], tensors[f"{stem}.scale"]
    by_rows = stem.endswith(ROWS) or len(codes.shape) == 3  # which experts have
    *lead, rows, columns = *codes.shape[:-1], codes.shape[-1] * 8 // bits
    if by_rows:
        block = None if scales.shape[-1] == 1 else columns // scales.shape[-1]
    else:
        block = None if len(scales.shape) == 1 else rows // scales.shape[0]
    return QuantizedPlace(
        location=path.name,
        shape=(*lead, rows, columns) if by_rows else (columns, rows),
        bits=bits,
        block=block,
        codes=codes,
        scales=scales,
        zeros=tensors.get(f"{stem}.zero_point"),
        by_rows=by_rows,
    )

"""The token embedding matrix, mapped from the weights and read row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_runtime.package.package import Package, PackageError
from avl_runtime.package.quantization import unpack_int4

_STORED: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I8": np.dtype(np.int8),
    "I4": np.dtype(np.uint8),  # two columns a byte
}


class Embedding:
    """Looks tokens up in the [vocab, C] matrix without loading it."""

    def __init__(self, package: Package) -> None:
        """Map the matrix.

        Raises:
            PackageError: the recorded place lies outside its file, or codes lack their scales.
        """
        entry = package.manifest.embedding
        rows, columns = entry.shape
        self._dtype = entry.dtype
        width = columns // 2 if entry.dtype == "I4" else columns
        self._matrix = _mapped(package, entry.offset, entry.dtype, (rows, width))
        self._scales: NDArray[Any] | None = None
        if entry.dtype not in ("I4", "I8"):
            return
        quantization = package.manifest.quantization
        scales = None if quantization is None else quantization.embedding
        if scales is None:
            raise PackageError(
                f"{package.folder}: expected scales of an embedding in {entry.dtype}, found none "
                "in the manifest; export again"
            )
        self._scales_dtype = scales.dtype
        shape = (rows, columns // scales.block_size)
        self._scales = _mapped(package, scales.offset, scales.dtype, shape)

    def lookup(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """[N] token ids -> [N, C] float32."""
        rows = self._matrix[ids]
        if self._scales is None:
            return _to_float32(rows, self._dtype)
        scales = _to_float32(self._scales[ids], self._scales_dtype)
        codes = unpack_int4(rows) if self._dtype == "I4" else rows
        blocks = codes.reshape(*scales.shape, -1).astype(np.float32)
        return (blocks * scales[..., None]).reshape(len(ids), -1)


def _mapped(package: Package, offset: int, dtype: str, shape: tuple[int, int]) -> NDArray[Any]:
    """A part of the embedding's file as a plain array: np.memmap's own indexing is slow."""
    path = package.weights_folder / package.manifest.embedding.file
    stored = _STORED[dtype]
    needed = offset + shape[0] * shape[1] * stored.itemsize
    if path.stat().st_size < needed:
        raise PackageError(
            f"{path}: expected the embedding matrix to end at byte {needed}, found a file of "
            f"{path.stat().st_size} bytes; export again"
        )
    return np.asarray(np.memmap(path, stored, "r", offset, shape))


def _to_float32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)

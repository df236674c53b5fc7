"""The token embedding matrix and the table of layers' inputs, read row by row from the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_runtime.package import manifest
from avl_runtime.package.package import Package, PackageError
from avl_runtime.package.quantization import RowScales, unpack_int4

_STORED: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I8": np.dtype(np.int8),
    "I4": np.dtype(np.uint8),  # two columns a byte
}


class Embedding:
    """Looks tokens up in the [vocab, C] matrix, and in a table of W columns, without loading them.

    W is 0 where layers read nothing of tokens by themselves.
    """

    def __init__(self, package: Package) -> None:
        """Map the matrix.

        Raises:
            PackageError: the recorded place lies outside its file, or codes lack their scales.
        """
        said, of_layers = package.manifest.quantization, package.manifest.layer_table
        scales = None if said is None else said.embedding
        self._words = _Table(package, package.manifest.embedding, scales, "an embedding")
        self._beside: _Table | None = None
        if of_layers is not None:
            scales = None if said is None else said.layer_table
            self._beside = _Table(package, of_layers.table, scales, "a table of layers' inputs")
            self._visual = of_layers.visual

    def lookup(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """[N] token ids -> [N, C + W] float32, as the decoder reads them."""
        return self._with_beside(self.words(ids), ids)

    def shown(self, features: NDArray[Any]) -> NDArray[Any]:
        """[N, C] features -> [N, C + W], as the decoder reads them."""
        if self._beside is None:
            return features
        return self._with_beside(features, np.full(len(features), self._visual))

    def _with_beside(self, rows: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[Any]:
        if self._beside is None:
            return rows
        beside = self._beside.rows(ids)
        return np.concatenate([rows, beside.astype(rows.dtype, copy=False)], 1)

    def words(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """[N] token ids -> [N, C] float32, of the matrix alone."""
        return self._words.rows(ids)


class _Table:
    """A matrix of which single rows are read, as numbers or as codes with scales."""

    def __init__(
        self, package: Package, entry: manifest.Embedding, scales: RowScales | None, what: str
    ) -> None:
        rows, columns = entry.shape
        self._dtype = entry.dtype
        width = columns // 2 if entry.dtype == "I4" else columns
        self._matrix = _mapped(package, entry, entry.offset, entry.dtype, (rows, width))
        self._scales: NDArray[Any] | None = None
        if entry.dtype not in ("I4", "I8"):
            return
        if scales is None or scales.block_size < 1 or columns % scales.block_size:
            found = (
                "none" if scales is None else f"one for {scales.block_size} of {columns} columns"
            )
            raise PackageError(
                f"{package.folder}: expected scales of {what} in {entry.dtype}, found {found} "
                "in the manifest; export again"
            )
        self._scales_dtype = scales.dtype
        shape = (rows, columns // scales.block_size)
        self._scales = _mapped(package, entry, scales.offset, scales.dtype, shape)

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """[N] numbers of rows -> [N, columns]."""
        rows = self._matrix[ids]
        if self._scales is None:
            return _to_float32(rows, self._dtype)
        scales = _to_float32(self._scales[ids], self._scales_dtype)
        codes = unpack_int4(rows) if self._dtype == "I4" else rows
        blocks = codes.reshape(*scales.shape, -1).astype(np.float32)
        return (blocks * scales[..., None]).reshape(len(ids), -1)


def _mapped(
    package: Package, entry: manifest.Embedding, offset: int, dtype: str, shape: tuple[int, int]
) -> NDArray[Any]:
    """A part of the file of `entry` as a plain array: np.memmap's own indexing is slow."""
    path = package.weights_folder / entry.file
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

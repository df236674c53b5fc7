"""The token embedding matrix, mapped from the checkpoint and read row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_runtime.package import Package, PackageError

_STORED: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


class Embedding:
    """Looks tokens up in the [vocab, C] matrix without loading it."""

    def __init__(self, package: Package) -> None:
        """Map the matrix.

        Raises:
            PackageError: the recorded place lies outside its file.
        """
        entry = package.manifest.embedding
        path = package.weights_folder / entry.file
        stored = _STORED[entry.dtype]
        needed = entry.offset + entry.shape[0] * entry.shape[1] * stored.itemsize
        if path.stat().st_size < needed:
            raise PackageError(
                f"{path}: expected the embedding matrix to end at byte {needed}, found a file of "
                f"{path.stat().st_size} bytes; export again"
            )
        self._bfloat16 = entry.dtype == "BF16"
        # As a plain array: np.memmap's own indexing costs more than reading a row.
        self._matrix = np.asarray(np.memmap(path, stored, "r", entry.offset, entry.shape))

    def lookup(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """[N] token ids -> [N, C] float32."""
        rows = self._matrix.take(ids, 0)
        if self._bfloat16:
            # bfloat16 is the upper half of a float32.
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32, copy=False)

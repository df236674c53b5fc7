"""What the runtime asks of a backend, and how one is chosen by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import AvlError
from avl_runtime.cache import SegmentCache
from avl_runtime.package import Package
from avl_runtime.vision import Kind

BACKENDS = ("auto", "ort-cpu", "ort-cuda", "tensorrt", "tensorrt-rtx")


class BackendError(AvlError):
    """A backend is unknown, not available, or cannot load a package."""


class BoundSegment(Protocol):
    """One decoder segment bound to fixed input buffers, run again and again in place.

    L is the segment's number of layers. Buffers are overwritten by the next run.

    Attributes:
        output: [B, S, C] hidden states, or [B, 1, V] logits of the last row.
        k_new, v_new: [L, B, Hkv, S, D].
        mass_active, mass_parked, mass_new: [L, B, Hkv, 2, rows] float32. Row 0 is the last query
            row's attention, row 1 the sum over text query rows; `rows` may exceed the cache's
            length.
    """

    output: NDArray[Any]
    k_new: NDArray[Any]
    v_new: NDArray[Any]
    mass_active: NDArray[np.float32]
    mass_parked: NDArray[np.float32]
    mass_new: NDArray[np.float32]

    def run(self, cache: SegmentCache, parked: bool) -> None:
        """Run on the current contents of the input buffers and the cache.

        Args:
            cache: the segment's; read only.
            parked: whether parked rows are read (a refresh or a prompt) or left out.
        """
        ...

    def release(self) -> None:
        """Let go of the cache's active rows, so that they are freed as they are replaced."""
        ...


class Backend(Protocol):
    """Graphs of one package, loaded."""

    name: str
    dtype: np.dtype[Any]

    def encode(self, kind: Kind, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run an encoder on one picture's or video's `Media.inputs`.

        Returns its features [..., C] and, for a decoder with deepstack layers, [K, tokens, C].
        """
        ...

    def bind(
        self,
        segment: int,
        hidden: NDArray[Any],
        position_ids: NDArray[np.int64],
        row_weights: NDArray[np.float32],
        deepstack: Sequence[NDArray[Any]],
    ) -> BoundSegment:
        """Bind segment number `segment` to its input buffers.

        Args:
            hidden: [B, S, C].
            position_ids: [B, S], or [3, B, S] for M-RoPE.
            row_weights: [B, 2, S].
            deepstack: [B, S, C] for each of the segment's deepstack layers.
        """
        ...


def load_backend(name: str, package: Package, threads: int | None) -> Backend:
    """Load `package` on the backend called `name`.

    Raises:
        BackendError: unknown name, or a backend this version cannot run.
    """
    if name not in BACKENDS:
        raise BackendError(
            f"expected a backend of {', '.join(BACKENDS)}, found {name!r}; choose one of them"
        )
    if name not in ("auto", "ort-cpu"):
        raise BackendError(
            f"expected backend ort-cpu, found {name}, which this version cannot run yet; "
            "use --backend ort-cpu"
        )
    from avl_runtime.backends.ort import OrtBackend

    return OrtBackend(package, threads)

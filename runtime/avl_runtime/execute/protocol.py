"""What the runtime asks of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cpu.logits import Logits
from avl_plugins.errors import AvlError
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.vision import Kind

BACKENDS = ("auto", "ort-cpu", "ort-cuda", "tensorrt", "tensorrt-rtx")
PARKS = ("device", "host")  # where parked rows lie between refreshes


class BackendError(AvlError):
    """A backend is unknown, not available, or cannot load a package."""


class Masses(Protocol):
    """Attention that keys received: see `BoundSegment`."""

    @property
    def mass_active(self) -> NDArray[np.float32]: ...

    @property
    def mass_parked(self) -> NDArray[np.float32]: ...

    @property
    def mass_new(self) -> NDArray[np.float32]: ...


class BoundSegment(Protocol):
    """One decoder segment bound to fixed input buffers, run again and again in place.

    L is the segment's number of layers. Buffers are overwritten by the next run.

    Attributes:
        output: [B, S, C] hidden states, or [B, 1, V] logits of the last row.
        k_new, v_new: [L, B, Hkv, S, D].
        mass_active, mass_parked, mass_new: [L, B, Hkv, R, rows] float32, weighted by `row_weights`.
            Row 0 is the last query row's attention, row 1, if bound, the sum over text query rows;
            `rows` may exceed the cache's length.
    """

    output: NDArray[Any]
    k_new: NDArray[Any]
    v_new: NDArray[Any]
    mass_active: NDArray[np.float32]
    mass_parked: NDArray[np.float32]
    mass_new: NDArray[np.float32]

    def run(
        self,
        cache: SegmentCache,
        parked: bool,
        ends: bool = False,
        masses: bool = True,
        core: NDArray[np.int64] | None = None,
        logits: Logits = Logits.ALL,
    ) -> bool:
        """Run on the current contents of the input buffers and the cache.

        Args:
            cache: the segment's; read only, but for a refresh of `core`.
            parked: whether parked rows are read (a refresh or a prompt) or left out.
            ends: whether this was a prompt's last chunk, so that memory which only chunks need
                can be given back.
            masses: whether somebody reads the attention that keys received; else the buffers for
                it have no row.
            core: [B] core rows that this step may refresh itself; None if it is no refresh.
            logits: which of them are read, if this is the last segment.

        Returns:
            Whether the step did the refresh. If not, it is the caller's.
        """
        ...

    def release(self) -> None:
        """Let go of the cache's active rows, so that they are freed as they are replaced."""
        ...


class Backend(Protocol):
    """Graphs of one package, loaded.

    Attributes:
        dtype: of the rows that the host hands over.
    """

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def encode(self, kind: Kind, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run an encoder on one picture's or video's `Media.inputs`.

        Returns its features [..., C] and, for a decoder with deepstack layers, [K, tokens, C].
        """
        ...


class HostBackend(Backend, Protocol):
    """A backend whose decoder segments read and write NumPy arrays."""

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
            row_weights: [B, R, S] of R masses: 2, or 1 if nobody reads that of text rows.
            deepstack: [B, S, C] for each of the segment's deepstack layers.
        """
        ...

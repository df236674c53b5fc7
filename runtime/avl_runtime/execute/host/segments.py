"""Decoder segments that read and write NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avl_plugins.graph_io import ROW_ENDS, ROW_POSITIONS, ROW_STANDING
from avl_plugins.logits import Logits
from avl_plugins.schema import RowType
from avl_runtime.execute.protocol import Backend
from avl_runtime.kv.by_layer import ByLayer, Floats
from avl_runtime.kv.cache import Ints, NewRows, SegmentCache
from avl_runtime.kv.standing import Standing

NOTHING: Mapping[str, Ints] = MappingProxyType({})


def causal_reach(positions: Ints, standing: Ints) -> dict[str, Ints]:
    """Of new rows at `positions` [B, S] what graphs may be given; arrays stay where they are.

    Args:
        standing: [B, S, Z].
    """
    ends = np.tile(np.arange(1, positions.shape[1] + 1), (len(positions), 1))
    return {ROW_ENDS: ends, ROW_POSITIONS: positions, ROW_STANDING: standing}


def no_standing(batch: int, rows: int, axes: int) -> Ints:
    """Of new rows that stand nowhere, as attention is not biased: [B, S, Z]."""
    return np.zeros((batch, rows, axes + 1), np.int64)


class BoundSegment(Protocol):
    """One decoder segment bound to fixed input buffers, run again and again in place.

    L is how many of the segment's layers keep rows. Buffers are overwritten by the next run.

    Attributes:
        output: [B, S, C] hidden states, or [B, answers, V] logits of the last rows.
        new: planes of the new rows.
        states: what layers with a state have made of theirs, in the order of `LayerStates`; who
            keeps these arrays puts others in their place.
        mass_active, mass_parked, mass_new: weighted by `row_weights`; see `kv.sight.Masses`.
    """

    output: NDArray[Any]
    new: tuple[NewRows, ...]
    states: list[NDArray[Any]]
    mass_active: ByLayer
    mass_parked: ByLayer
    mass_new: Floats

    def run(
        self,
        cache: SegmentCache,
        parked_len: Ints | None = None,
        *,
        masses: bool = True,
        core: Ints | None = None,
        logits: Logits = Logits.ALL,
        ends: bool = False,
        standing: Standing | None = None,
    ) -> bool:
        """Run on the current contents of the input buffers and the cache.

        Args:
            cache: the segment's; read only, but for a refresh of `core`.
            parked_len: [L, B] parked rows that are read; None for none.
            masses: whether somebody reads the attention that keys received; else the buffers for
                it have no row.
            core: [L, B] core rows that this step may refresh by attention itself; None for none.
            logits: which of them are read, if this is the last segment.
            ends: whether this was a prompt's last chunk, so that memory which only chunks need
                can be given back.
            standing: of the tokens of cached rows, where attention is biased.

        Returns:
            Whether the step did the refresh. If not, it is the caller's.
        """
        ...

    def release(self) -> None:
        """Let go of the cache's active rows, so that they are freed as they are replaced."""
        ...


class HostBackend(Backend, Protocol):
    """A backend whose decoder segments read and write NumPy arrays.

    Attributes:
        kept: how cached rows are kept.
        answers_rows: whether the last segment can give logits of several rows; graphs of older
            packages give the last row's alone.
        kernels: which kernels of avl's own run, for people; None: none.
    """

    @property
    def answers_rows(self) -> bool: ...

    @property
    def kept(self) -> RowType: ...

    @property
    def kernels(self) -> str | None: ...

    def bind(
        self,
        segment: int,
        hidden: NDArray[Any],
        position_ids: Ints,
        row_weights: NDArray[np.float32],
        deepstack: Sequence[NDArray[Any]],
        answers: int = 1,
        reach: Mapping[str, Ints] = NOTHING,
    ) -> BoundSegment:
        """Bind segment number `segment` to its input buffers.

        Args:
            hidden: [B, S, C].
            position_ids: [B, S], or [3, B, S] for M-RoPE.
            row_weights: [B, R, S] of R masses: 2, or 1 if nobody reads that of text rows.
            deepstack: [B, S, C] for each of the segment's deepstack layers.
            answers: of how many rows, the last ones, the last segment gives logits.
            reach: [B, S, ...] of each that the graph has of `graph_io.Segment.reach`.
        """
        ...

"""Drafted tokens on their way through a decoder: several new rows of a sequence at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avl_plugins.logits import Logits
from avl_runtime.kv.cache import Ints
from avl_runtime.kv.sight import Masses
from avl_runtime.kv.standing import Standing


@dataclass(slots=True, eq=False)
class Drafted:
    """The newest token of b sequences of a batch, and drafts behind it: S rows each.

    Attributes:
        seqs: which sequences: one of them, or all in the batch's order.
        hidden: [b, S, C], embeddings. Rows behind those that a sequence has are padding: what comes
            before them does not see them, and nobody keeps them.
        positions: [b, S], in the conversations.
        position_ids: [b, S], the same on each axis of RoPE, as text has it.
        parked: for each of them, whether its parked rows are read.
        weights: [b, 1, S] float32, what makes a mass of the rows' attention; None where nobody
            ranks by it.
        logits: which of them somebody reads.
        standing: of the conversations' tokens, where attention is biased.
    """

    seqs: Sequence[int]
    hidden: NDArray[Any]
    positions: Ints
    position_ids: Ints
    parked: Sequence[bool]
    weights: NDArray[np.float32] | None
    logits: Logits
    standing: Standing | None = None


class Checked(Protocol):
    """What a run over drafted tokens has found. Nothing is added to a cache but by `store`.

    Attributes:
        logits: [b, S, V], behind each row.
        rows: S.
    """

    @property
    def logits(self) -> NDArray[np.float32]: ...

    @property
    def rows(self) -> int: ...

    def masses(self, segment: int) -> Masses:
        """Attention that keys received, of the b sequences; of padding weighted as it was told."""
        ...

    def store(self, segment: int, index: int, count: int) -> None:
        """Add the first `count` rows of the run's sequence number `index` to a segment's cache.

        Raises:
            ValueError: there are layers with a state, which have read more rows.
        """
        ...

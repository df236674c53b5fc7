"""Drafted tokens of one sequence that were run at once, and what becomes of their rows."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avl_plugins.logits import Logits
from avl_runtime.execute.check import Checked, Drafted
from avl_runtime.generate.choices import after_step
from avl_runtime.generate.sequence import Sequence
from avl_runtime.kv.standing import standing_of
from avl_runtime.package.manifest import Manifest
from avl_runtime.prompts.embedding import Embedding

Asked = tuple[Sequence, abc.Sequence[int]]  # a sequence, its newest token, and drafts behind it


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """Tokens that went through the decoder, and none of which is part of the sequence yet.

    Attributes:
        logits: [S, V], behind each of them; overwritten by the next check.
    """

    logits: NDArray[np.float32]
    _sequence: Sequence
    _tokens: abc.Sequence[int]
    _manifest: Manifest
    _run: Checked
    _index: int
    _again: abc.Callable[[abc.Sequence[int]], Checked]

    def keep(self, count: int) -> None:
        """Add the first `count` of the tokens to the sequence; the others never were.

        A core that has led to a wrong draft is drawn anew. One whose drafts were right stays: on
        avl-tiny one drawn after every check gives hardly more right ones, and moving rows costs
        as much as a step.
        """
        sequence, run, index = self._sequence, self._run, self._index
        if count < run.rows and any(len(cache.states) for cache in sequence.caches):
            # A state that has read a wrong draft, or padding, cannot give it back.
            run, index = self._again(self._tokens[:count]), 0
        sequence.grow(self._tokens[:count])
        sequence.step += count
        draws = sequence.drafting is not None and count < len(self._tokens)
        due = sequence.due() if draws else ()
        for segment in range(len(self._manifest.segments)):
            cache = sequence.caches[segment]
            for action in due:
                masses = self._run.masses(segment) if action.ranking.reads_attention else None
                after_step(sequence, cache, action, masses, self._index)
            run.store(segment, index, count)


def drafted(asked: abc.Sequence[Asked], embedding: Embedding, logits: Logits) -> Drafted:
    """Inputs of a run over all that is asked, as many rows of each as the longest has."""
    most = max(len(tokens) for _, tokens in asked)
    rows = np.zeros((len(asked), most), np.int64)
    for row, (_, tokens) in zip(rows, asked, strict=True):
        row[: len(tokens)] = tokens
    ahead = np.arange(most)
    return Drafted(
        [sequence.seq for sequence, _ in asked],
        embedding.lookup(rows.reshape(-1)).reshape(*rows.shape, -1),
        np.array([[sequence.length] for sequence, _ in asked]) + ahead,
        np.array([[sequence.next_position] for sequence, _ in asked]) + ahead,
        [sequence.drafting is not None or sequence.reads_parked() for sequence, _ in asked],
        _weights(asked, most),
        logits,
        standing_of([sequence for sequence, _ in asked]),
    )


def _weights(asked: abc.Sequence[Asked], most: int) -> NDArray[np.float32] | None:
    """What makes a mass of the attention of all rows of a sequence that draws a core by it.

    All of them count, since which will be kept is not known before the run, and most are.
    """
    weights = np.zeros((len(asked), 1, most), np.float32)
    for row, (sequence, tokens) in zip(weights, asked, strict=True):
        row[0, : len(tokens)] = sequence.drafting is not None
    return weights if weights.any() else None

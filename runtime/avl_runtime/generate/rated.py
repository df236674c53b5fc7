"""Attention of some of a prompt's rows, by which image tokens are ranked between two layers."""

from __future__ import annotations

import numpy as np

from avl_plugins.policies import Action, Tokens
from avl_runtime.execute.protocol import Chunk
from avl_runtime.generate.probed import some_of
from avl_runtime.generate.sequence import Sequence
from avl_runtime.kv import sight
from avl_runtime.kv.by_layer import LAST, TEXT
from avl_runtime.kv.cache import Floats, Ints, SegmentCache
from avl_runtime.package.manifest import Manifest


class Rated:
    """What the raters of an action give each token in a segment's last layer.

    Attributes:
        row: of the masses that graphs tell, the one that is the raters'.
        scores: [tokens so far], what the runs that were noted have given each.
    """

    def __init__(self, sequence: Sequence, raters: Ints) -> None:
        self._sequence, self._raters = sequence, raters
        probed = any(action.tokens is Tokens.ANY for action in sequence.actions)
        self.row = LAST if probed else TEXT
        self.scores: Floats = np.zeros(sequence.length, np.float32)

    def weights(self, positions: Ints) -> Floats:
        """[n], for each rater among rows its share."""
        found: Floats = np.isin(positions, self._raters).astype(np.float32)
        return found / np.float32(len(self._raters))

    def note(self, cache: SegmentCache, masses: sight.Masses, positions: Ints) -> None:
        """A run over rows at `positions`, some of them raters, has given this attention."""
        seq, total = self._sequence.seq, self._sequence.length
        self.scores += sight.by_position(cache, seq, masses, positions, total, by=self.row)[-1]


def rating(
    sequence: Sequence, manifest: Manifest, index: int, whole: Chunk, positions: Ints
) -> Rated | None:
    """What collects attention in a segment, if an action behind it ranks by raters.

    Args:
        index: the segment's number.
        whole: all rows of a prompt, before the first layer.
        positions: of the rows that the segment reads.

    Raises:
        PolicyError: the action's raters are none of the prompt's rows.
    """
    behind = manifest.segments[index].last_layer
    for action in sequence.actions:
        if action.rates and action.before == behind and sequence.images_read:
            raters = _raters(sequence, action, whole, manifest.dims.hidden_size)
            left = raters[np.isin(raters, positions)]
            return Rated(sequence, left if len(left) else positions[-1:])
    return None


def _raters(sequence: Sequence, action: Action, whole: Chunk, width: int) -> Ints:
    """The raters of an action, which somebody else may have written."""
    positions = whole.positions
    found = action.raters(positions, sequence.image_mask[positions], whole.hidden[:, :width])
    return some_of(positions, found, action, "raters", fewest=1)

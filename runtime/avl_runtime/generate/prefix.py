"""What a prompt takes from those that were read before it, and what it leaves for later ones.

Nothing is taken that an action could have decided otherwise. Where image tokens are chosen before
the decoder that has been done: what it is given decides, to the last bit. A row of a segment
depends on the tokens up to its own alone, as long as no action drops hidden states before the
segment, which may look at the whole prompt: rows are shared of the segments before the first such
action (of all, where there is none), before any action has moved them. What actions decide behind a
prompt (a division into core and secondary tokens, a text budget) each prompt decides for itself;
runs whose rows' attention it asks for are read.

Rows are shared by whole runs. Reading begins where a run would have begun, and each run that is
read has the rows that it would have had: so an answer is the same bit for bit. To share more, up to
the last token that is alike, would have runs of other lengths, which sum in another order, and
where many rows are multiplied in bf16 that is enough to change tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from collections.abc import Sequence as Several
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins import graph_io
from avl_plugins.policies import Tokens
from avl_runtime.execute.protocol import Pass
from avl_runtime.generate.probed import probes_of
from avl_runtime.generate.sequence import Sequence
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.kv.prefixes import Block, PrefixCache, put
from avl_runtime.package.manifest import Manifest
from avl_runtime.prompts.prompt import Prompt
from avl_runtime.prompts.rows import PromptRows

Span = tuple[int, int]


def spans(count: int, most: int, ends: NDArray[np.int64] | None = None) -> list[Span]:
    """Begin and end of each run over `count` rows, of `most` at most.

    Args:
        ends: [count], the first row behind each that it does not attend to. Rows that attend to one
            another are read together, however many they are. None: each attends to those before it.
    """
    if ends is None:
        return [(begin, min(begin + most, count)) for begin in range(0, count, most)]
    cuts = np.flatnonzero(np.maximum.accumulate(ends) <= np.arange(1, count + 1)) + 1
    found: list[Span] = []
    begin = 0
    while begin < count:
        first, behind = cuts.searchsorted([begin, begin + most], "right").tolist()
        end = int(cuts[max(first, behind - 1)])
        found.append((begin, end))
        begin = end
    return found


class Prefix:
    """The beginning of a prompt that begins a conversation.

    Attributes:
        segments: how many segments, the first ones, have rows that are shared.
    """

    def __init__(
        self,
        cache: PrefixCache,
        sequence: Sequence,
        manifest: Manifest,
        prompt: Prompt,
        chosen: PromptRows | None = None,
    ) -> None:
        """
        Args:
            chosen: the prompt's rows, where image tokens were chosen before the decoder.
        """
        drops = {action.before for action in sequence.actions}
        firsts = [segment.first_layer in drops for segment in manifest.segments]
        self.segments = firsts.index(True) if True in firsts else len(firsts)
        self._cache, self._evicts, self._executor = cache, sequence.evicts, sequence.executor
        later = manifest.segments[self.segments :]
        self._whole = not later
        self._deep = any(segment.deepstack for segment in later)
        # The last run is always read: the logits behind it are asked for.
        self._given, ends = np.arange(len(prompt.input_ids)), prompt.ends
        if chosen is not None:
            self._given, ends = chosen.given, chosen.ends
        row_ends = None if ends is None else self._given.searchsorted(ends)
        self._runs = spans(len(self._given), sequence.executor.chunk, row_ends)[:-1]
        root = f"{self.segments} {self._evicts}"
        if sequence.restores and prompt.image_mask.any():
            root += " restored"
        if chosen is None:
            self._keys = _keys(prompt, self._runs, root)
        else:
            self._keys = _keys_of_rows(chosen, self._runs, root)
        self._able = self._before_probes(prompt, sequence)
        self._taken = cache.find(self._keys[: self._able])
        self._shared = sequence.caches[: self.segments]
        # Of what the first segment that is not shared reads.
        self._width = graph_io.width(manifest.dims, later[0].first_layer) if later else 0
        shared = sum(one.layers for one in self._shared)
        each = sum(active for active, _ in sequence.executor.row_bytes[:shared])
        # What does not fit is not even collected. States are kept behind each run.
        states = sum(one.states.nbytes for one in self._shared)
        self._most = sum(
            end * each + number * states <= cache.limit
            for number, (_, end) in enumerate(self._runs, start=1)
        )
        each += self._width * sequence.executor.dtype.itemsize
        self._sizes = [(end - begin) * each + states for begin, end in self._runs]
        self._expected = 0
        self._rows: list[list[tuple[NDArray[Any], ...]]] = [[] for _ in self._shared]
        self._mass: list[list[NDArray[np.float32]]] = [[] for _ in self._shared]
        self._keeps = any(len(one.states) for one in self._shared)
        self._states: list[list[tuple[NDArray[Any], ...]]] = [[] for _ in self._shared]
        self._hidden: list[NDArray[Any]] = []

    def _before_probes(self, prompt: Prompt, sequence: Sequence) -> int:
        """How many runs, the first ones, need not be read: a probe's attention has to be seen.

        None where raters are, which all embeddings choose.
        """
        if any(action.rates for action in sequence.actions):
            return 0
        image = prompt.image_mask[self._given]
        for action in sequence.actions:
            if action.tokens is Tokens.ANY:
                probes = probes_of(action, self._given, image)
                if len(probes):
                    first = self._given.searchsorted(probes[0])
                    return sum(end <= first for _, end in self._runs)
        return len(self._runs)

    @property
    def length(self) -> int:
        """Tokens at its begin that are not read, since their rows are known."""
        return sum(block.length for block in self._taken)

    def fetch(self) -> Generator[None, None, None]:
        """Take what follows from disk, before anything is read; stops behind each run of it."""
        for number in range(len(self._taken), self._able):
            block = self._cache.stored(self._keys[number], self._pattern(*self._runs[number]))
            if block is None:
                return
            self._taken.append(block)
            yield

    def _pattern(self, begin: int, end: int) -> Block:
        """A block as a run leaves it, of arrays that take no memory."""
        count, heads = end - begin, [one.positions.shape[2] for one in self._shared]
        both = list(zip(self._shared, heads, strict=True))
        rows = tuple(
            tuple(
                _empty(plane.dtype, one.layers, 1, head, count, plane.width)
                for plane in one.planes[0][0]
            )
            for one, head in both
        )
        mass = tuple(_empty(np.dtype(np.float32), one.layers, head, end) for one, head in both)
        hidden = None if self._whole else _empty(self._executor.dtype, count, self._width)
        states = tuple(
            tuple(_empty(array.dtype, *array.shape) for array in one.states.arrays)
            for one in self._shared
        )
        block = Block(rows, mass if self._evicts else (), hidden)
        return replace(block, states=states) if self._keeps else block

    @property
    def unread(self) -> int:
        """The first token whose embedding, or features for later layers, are read."""
        return 0 if self._deep else self.length

    def put(self, index: int, cache: SegmentCache) -> None:
        """Have a segment's cache hold the rows that are known, if any."""
        if self._taken and index < self.segments:
            put(self._taken, index, cache, self._given)

    def before(self, hidden: NDArray[Any]) -> NDArray[Any]:
        """All rows [N, C] that the last shared segment puts out, of those behind the known ones."""
        known = [block.hidden for block in self._taken if block.hidden is not None]
        return np.concatenate([*known, hidden])

    def note(self, index: int, cache: SegmentCache, run: Pass) -> None:
        """Collect what a run but the last has added to a segment's cache."""
        if index >= self.segments:
            return
        number = len(self._taken) + len(self._rows[index])
        if number >= self._most:
            return
        if index == 0:  # memory for all segments, which has to be there before it is filled
            if not self._cache.expect(self._sizes[number]):
                self._most = number
                return
            self._expected += self._sizes[number]
        self._rows[index].append(tuple(map(np.asarray, run.rows)))
        self._states[index].append(tuple(run.states))
        if self._evicts:
            length = int(cache.active_len[0, 0])
            self._mass[index].append(cache.mass[:, 0, :, :length].copy())
        if index == self.segments - 1 and not self._whole:
            self._hidden.append(run.output)

    def keep(self) -> None:
        """Leave what was collected for others: the prompt has been read."""
        fresh = [
            Block(
                tuple(rows),
                tuple(mass[number] for mass in self._mass) if self._evicts else (),
                None if self._whole else self._hidden[number],
                tuple(states[number] for states in self._states) if self._keeps else (),
            )
            for number, rows in enumerate(zip(*self._rows, strict=True))
        ]
        self.forget()
        self._cache.add(self._keys, [*self._taken, *fresh])

    def forget(self) -> None:
        """Collect nothing more: nobody need make way for it."""
        self._cache.unexpect(self._expected)
        self._expected, self._most = 0, 0


def _empty(dtype: np.dtype[Any], *shape: int) -> NDArray[Any]:
    return np.broadcast_to(np.zeros((), dtype), shape)


def _keys(prompt: Prompt, runs: Several[Span], root: str) -> list[bytes]:
    """For each run a hash of all that its rows depend on: tokens, positions, pictures."""
    found = []
    digest = hashlib.sha256(root.encode())
    seen = [(media, at[0]) for media, at in prompt.places() if len(at)]
    for begin, end in runs:
        digest.update(f"|{begin} {end}".encode())
        for array in (prompt.input_ids, prompt.image_mask, prompt.positions):
            digest.update(np.ascontiguousarray(array[..., begin:end]).tobytes())
        for media, first in seen:
            if begin <= first < end:
                digest.update(f"|{media.kind} {media.tokens} {media.digest}".encode())
        found.append(digest.digest())
    return found


def _keys_of_rows(rows: PromptRows, runs: Several[Span], root: str) -> list[bytes]:
    """For each run a hash of what the decoder is given, and of what its tokens are."""
    found = []
    digest = hashlib.sha256(f"{root} rows".encode())
    given = rows.given
    arrays = [given, rows.token_ids[given], rows.image_mask[given], rows.position_ids, rows.counts]
    if rows.ends is not None:
        arrays.append(rows.ends)
    for begin, end in runs:
        digest.update(f"|{begin} {end}".encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array[..., begin:end]).tobytes())
        for features in (rows.hidden[begin:end], rows.deepstack[:, begin:end]):
            digest.update(np.ascontiguousarray(features).tobytes())
        found.append(digest.digest())
    return found

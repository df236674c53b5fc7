"""The runs over which packages are compared: a prompt in chunks, then decode steps.

Segments are pure functions of what they are given, so nothing of the runtime's own loops is needed:
rows are kept, parked and dropped here by the simplest means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avl_export.check.runners import Runner
from avl_plugins import graph_io
from avl_plugins.graph_io import (
    ACTIVE,
    DEEPSTACK,
    HIDDEN,
    MADE,
    PARKED,
    POSITIONS,
    ROW_ENDS,
    ROW_POSITIONS,
    ROW_STANDING,
    STATE,
    WEIGHTS,
    layer_of,
    named,
)
from avl_runtime.generate.prefix import spans
from avl_runtime.kv.states import no_states
from avl_runtime.package.manifest import Manifest
from avl_runtime.package.package import Package
from avl_runtime.prompts.embedding import Embedding
from avl_runtime.prompts.processor import Processor, Prompt
from avl_runtime.vision import Features, Kind

DECODE = 3
QUESTION = "What is in the picture?"
PICTURE = (97, 140)  # height and width: no multiples of anything
FRAMES = 3

Array = NDArray[Any]
Ints = NDArray[np.int64]
Mode = Literal["dense", "avl", "parked"]
Encode = Callable[[Kind, Mapping[str, Array]], list[Array]]  # see `Runner.encode`


def check_prompt(package: Package) -> Prompt:
    """A question about a random picture and, where possible, video; random tokens of a reply."""
    manifest = package.manifest
    rng = np.random.default_rng(0)
    picture, *film = rng.integers(0, 256, (1 + FRAMES, *PICTURE, 3), np.uint8)
    videos = [] if manifest.video is None else [film]
    asked = Processor.from_package(package).encode(QUESTION, [picture], videos)
    visual = manifest.visual_tokens
    words = [n for n in range(min(visual[0], manifest.dims.vocab_size)) if n not in visual]
    ids = np.concatenate([asked.input_ids, rng.choice(words, DECODE)])
    axes, reach = manifest.dims.position_axes, manifest.reach
    prompt = Prompt.of(ids, visual, asked.media, axes, reach)
    if prompt.ends is None:
        return prompt
    # Tokens of a reply see those before them alone.
    said = len(asked.input_ids)
    ends = np.concatenate([np.minimum(prompt.ends[:said], said), np.arange(said, len(ids)) + 1])
    return replace(prompt, ends=ends)


@dataclass(frozen=True, slots=True)
class Rows:
    """What the decoder reads: hidden [N, W], positions [axes, N], deepstack [K, N, C], ends [N]."""

    hidden: Array
    positions: Array
    deepstack: Array
    image_mask: NDArray[np.bool_]
    ends: Ints | None

    def feeds(self, begin: int, end: int) -> dict[str, Array]:
        """What segments may take of rows from `begin` to `end` - 1, beside their states."""
        ids = np.ascontiguousarray(self.positions[:, begin:end])
        text = ~self.image_mask[begin:end]
        last = np.arange(end - begin) == end - begin - 1
        ends = np.arange(begin, end) + 1 if self.ends is None else self.ends[begin:end]
        return {
            ROW_ENDS: ends[None] - begin,
            ROW_POSITIONS: np.arange(begin, end)[None],
            ROW_STANDING: np.zeros((1, end - begin, len(ids) + 1), np.int64),
            POSITIONS: graph_io.positions(ids),
            WEIGHTS: np.stack([last, text])[None].astype(np.float32),
        }

    def ends_of(self, count: int) -> Ints | None:
        """Ends of the first rows, where they are not all those behind the row itself."""
        return None if self.ends is None else self.ends[:count]


def encoded(manifest: Manifest, prompt: Prompt, encode: Encode) -> list[Features]:
    """Features of a prompt's pictures and videos."""
    return [
        media.features([encode(media.kind, run) for run in media.runs()], manifest.encoded)
        for media in prompt.media
    ]


def embed(package: Package, prompt: Prompt) -> Array:
    """Embeddings of a prompt's tokens, [N, W] as the decoder reads them; 0 at visual ones."""
    table, mask = Embedding(package), prompt.image_mask
    # Visual tokens may lie outside the vocabulary.
    rows: Array = table.lookup(np.where(mask, 0, prompt.input_ids))
    nothing = np.zeros((np.count_nonzero(mask), package.manifest.dims.hidden_size), rows.dtype)
    rows[mask] = table.shown(nothing)
    return rows


def rows_of(package: Package, prompt: Prompt, parts: Sequence[Features]) -> Rows:
    """Embeddings of a prompt, with the features of its media in their places."""
    hidden, mask = embed(package, prompt), prompt.image_mask
    columns, layers = package.manifest.dims.hidden_size, package.manifest.deepstack_layers
    deepstack = np.zeros((len(layers), len(mask), columns), np.float32)
    hidden[mask, :columns] = np.concatenate([part.rows for part in parts])
    deepstack[:, mask] = np.concatenate([part.deepstack for part in parts], 1)
    return Rows(hidden, prompt.positions, deepstack, mask, prompt.ends)


class Run(NamedTuple):
    """One run of a segment: the step that it belongs to, the segment's number, its tensors."""

    step: str
    segment: int
    feeds: Mapping[str, Array]
    found: Mapping[str, Array]


def walk(
    manifest: Manifest,
    runner: Runner,
    rows: Rows,
    mode: Mode,
    most_rows: int | None = None,
) -> Iterator[Run]:
    """Read all rows but the last DECODE in two chunks or more, and then these one at a time.

    Args:
        most_rows: of a chunk; also at most what `runner` takes.
        mode: "dense" reads every row in every step. "parked" parks half of the image rows before
            the second step, and reads them in every step, which comes to the same. "avl" keeps a
            third of the image rows active, parks a third, which every other step reads, and drops
            the rest.
    """
    total = len(rows.hidden)
    prompt = total - DECODE
    limits = (most_rows, runner.most_rows, -(-prompt // 2))
    chunk = min(limit for limit in limits if limit is not None)
    begins = [begin for begin, _ in spans(prompt, chunk, rows.ends_of(prompt))]
    places = Places(manifest, runner.dtype)
    images = np.flatnonzero(rows.image_mask[:prompt])
    for number, (begin, end) in enumerate(pairwise([*begins, *range(prompt, total + 1)])):
        step = number + 1 - len(begins)
        if mode == "avl" and step == 1:
            places.part(images[1::3], images[2::3])
        if mode == "parked" and step == 2:
            places.part(images[1::2])
        label = f"{mode} step {step}" if step > 0 else f"{mode} prompt {number + 1}"
        feeds, dtype = rows.feeds(begin, end), runner.dtype
        state = np.ascontiguousarray(rows.hidden[None, begin:end], dtype)
        made: dict[str, Array] = {}
        for index, segment in enumerate(manifest.segments):
            layers = manifest.graph_of(segment).layers
            given = {HIDDEN: state, **pick(feeds, manifest.graph_of(segment))}
            for layer in segment.deepstack:
                added = rows.deepstack[manifest.deepstack_layers.index(layer)]
                given[named(DEEPSTACK, layer)] = np.ascontiguousarray(added[None, begin:end], dtype)
            for layer in layers:
                reads = mode == "parked" or step % 2 == 0
                given |= places.feeds(layer, parked=reads, position=begin)
            found = runner.run(index, given)
            yield Run(label, index, given, found)
            made |= found
            state = found.get(STATE, state)
        places.append(made)


def pick(feeds: Mapping[str, Array], graph: graph_io.Segment) -> dict[str, Array]:
    """Of `Rows.feeds` those that a graph takes."""
    unread = {ROW_ENDS, ROW_POSITIONS, ROW_STANDING}.difference(graph.reach)
    return {name: array for name, array in feeds.items() if name not in unread}


class Places:
    """What layers keep: keys and values [1, Hkv, n, D], active and parked, or states.

    Layers with a window hold all of theirs, and are fed those that it leaves.
    """

    def __init__(self, manifest: Manifest, dtype: np.dtype[Any]) -> None:
        dims, graphs = manifest.dims, [manifest.graph_of(one) for one in manifest.segments]
        # Where graphs can be told where rows stand, no attention is biased.
        self._standing = dims.position_axes + 1 if manifest.restores else 0
        windows = (one for part in manifest.segments for one in manifest.windows(part))
        self._windows = dict(zip(manifest.row_layers, windows, strict=True))
        self._empty = {
            layer: np.zeros((1, dims.num_kv_heads, 1, dims.head_size(layer)), dtype)
            for layer in manifest.row_layers
        }
        self._nothing = {layer: (one[:, :, :0],) * 2 for layer, one in self._empty.items()}
        self._active = dict(self._nothing)
        self._parked = dict(self._active)
        self._becomes = {made.name: held.name for one in graphs for held, made in one.states()}
        self._states = {
            held.name: array
            for one in graphs
            for (held, _), array in zip(one.states(), no_states(one, dtype), strict=True)
        }

    def append(self, made: Mapping[str, Array]) -> None:
        """Add new rows behind the active ones of each layer, and have the new states."""
        for layer, (k, v) in self._active.items():
            new = made[named(MADE.keys, layer)], made[named(MADE.values, layer)]
            self._active[layer] = np.concatenate([k, new[0]], 2), np.concatenate([v, new[1]], 2)
        self._states |= {held: made[name] for name, held in self._becomes.items()}

    def part(self, parked: Ints, dropped: Ints | None = None) -> None:
        """Park and drop some of the active rows."""
        gone = [] if dropped is None else dropped.tolist()
        taken = [*parked.tolist(), *gone]
        for layer, (k, v) in self._active.items():
            if self._windows[layer] is None:
                self._parked[layer] = k[:, :, parked], v[:, :, parked]
                self._active[layer] = np.delete(k, taken, 2), np.delete(v, taken, 2)

    def feeds(self, layer: int, parked: bool, position: int = 0) -> dict[str, Array]:
        """What a layer keeps as its graph takes it; no rows are one row of length 0.

        Args:
            position: of the first new row.
        """
        if layer not in self._active:
            return {name: array for name, array in self._states.items() if layer_of(name) == layer}
        found: dict[str, Array] = {}
        apart = self._parked[layer] if parked else self._nothing[layer]
        active, window = self._active[layer], self._windows[layer]
        empty = self._empty[layer]
        if window is not None:
            first = max(0, position + 1 - window)
            active = active[0][:, :, first:], active[1][:, :, first:]
            places = np.arange(first, max(position, first + 1))[None]
            found[named(ACTIVE.positions, layer)] = places
        for place, (k, v) in ((ACTIVE, active), (PARKED, apart)):
            rows = k.shape[2]
            found[named(place.length, layer)] = np.array([rows])
            if self._standing:
                nowhere = np.zeros((1, 1, max(1, rows), self._standing), np.int64)
                found[named(place.standing, layer)] = nowhere
            for kind, array in ((place.keys, k), (place.values, v)):
                found[named(kind, layer)] = np.ascontiguousarray(array) if rows else empty
        return found

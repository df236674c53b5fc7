"""The passes over which backends are compared: a prompt in chunks, then decode steps.

Segments are pure functions of what they are given, so nothing of the runtime's own loops is needed:
rows are kept, parked and dropped here by the simplest means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from avl_export.check.check import DECODE
from avl_export.check.runners import Runner
from avl_runtime.package.manifest import Manifest
from avl_runtime.package.package import Package
from avl_runtime.prompts.embedding import Embedding
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision import Features, Kind, Media

Array = NDArray[Any]
Ints = NDArray[np.int64]
Mode = Literal["dense", "avl", "parked"]
# Hears of a run: what it belongs to, which segment, its inputs and its outputs.
Hear = Callable[[str, int, Mapping[str, Array], Mapping[str, Array]], None]


@dataclass(frozen=True, slots=True)
class Rows:
    """What the decoder reads: hidden [N, C], positions [axes, N], deepstack [K, N, C]."""

    hidden: Array
    positions: Array
    deepstack: Array
    image_mask: NDArray[np.bool_]


def encode(
    runner: Runner,
    media: Media,
    hear: Callable[[Kind, Mapping[str, Array], Sequence[Array]], None] = lambda *_: None,
) -> Features:
    """Features of a picture or video; `hear` is told of each run of its encoder."""
    runs = []
    for inputs in media.runs():
        runs.append(runner.encode(media.kind, inputs))
        hear(media.kind, inputs, runs[-1])
    return media.features(runs)


def rows_of(package: Package, prompt: Prompt, parts: Sequence[Features]) -> Rows:
    """Embeddings of a prompt, with the features of its media in their places."""
    mask = prompt.image_mask
    # Visual tokens may lie outside the vocabulary; their rows are replaced anyway.
    hidden = Embedding(package).lookup(np.where(mask, 0, prompt.input_ids))
    deepstack = np.zeros((len(package.manifest.deepstack_layers), *hidden.shape), np.float32)
    hidden[mask] = np.concatenate([part.rows for part in parts])
    deepstack[:, mask] = np.concatenate([part.deepstack for part in parts], 1)
    return Rows(hidden, prompt.positions, deepstack, mask)


def walk(
    manifest: Manifest,
    runner: Runner,
    rows: Rows,
    mode: Mode,
    hear: Hear,
    most_rows: int | None = None,
) -> None:
    """Read all rows but the last DECODE in two chunks or more, and then these one at a time.

    Args:
        most_rows: of a chunk; also at most what `runner` takes.
        mode: "dense" reads every row in every step. "parked" parks half of the image rows and
            reads them in every step, which comes to the same. "avl" keeps a third of the image rows
            active, parks a third, which every other step reads, and drops the rest.
    """
    total = len(rows.hidden)
    prompt = total - DECODE
    limits = (most_rows, runner.most_rows, -(-prompt // 2))
    chunk = min(limit for limit in limits if limit is not None)
    begins = range(0, prompt, chunk)
    places = _Places(manifest, runner.dtype)
    for number, (begin, end) in enumerate(pairwise([*begins, *range(prompt, total + 1)])):
        step = number + 1 - len(begins)
        if step == 1 and mode != "dense":
            images = np.flatnonzero(rows.image_mask[:prompt])
            places.part(images, prompt, thirds=mode == "avl")
        label = f"{mode} step {step}" if step > 0 else f"{mode} prompt {number + 1}"
        reads_parked = mode == "parked" or step % 2 == 0
        _pass(manifest, runner, rows, (begin, end), places, reads_parked, label, hear)


def _pass(
    manifest: Manifest,
    runner: Runner,
    rows: Rows,
    between: tuple[int, int],
    places: _Places,
    parked: bool,
    label: str,
    hear: Hear,
) -> None:
    """Run all segments over some rows and keep what they add to the caches."""
    part, dtype = slice(*between), runner.dtype
    ids = np.ascontiguousarray(rows.positions[:, part])
    text = ~rows.image_mask[part]
    last = np.arange(len(text)) == len(text) - 1
    feeds: dict[str, Array] = {
        "position_ids": ids if len(ids) == 1 else ids[:, None],
        "row_weights": np.stack([last, text])[None].astype(np.float32),
    }
    for layer, added in zip(manifest.deepstack_layers, rows.deepstack, strict=True):
        feeds[f"deepstack.{layer}"] = np.ascontiguousarray(added[None, part], dtype)
    state = np.ascontiguousarray(rows.hidden[None, part], dtype)
    new = []
    for number, segment in enumerate(manifest.segments):
        layers = range(segment.first_layer, segment.last_layer)
        given = {"hidden": state, **_deepstack(feeds, segment.deepstack)}
        for layer in layers:
            given |= places.feeds(layer, parked)
        found = runner.run(number, given)
        hear(label, number, given, found)
        new += [(found[f"k_new.{layer}"], found[f"v_new.{layer}"]) for layer in layers]
        state = found.get("hidden_out", state)
    places.append(new)


def _deepstack(feeds: Mapping[str, Array], layers: Sequence[int]) -> dict[str, Array]:
    """The feeds that a segment takes."""
    wanted = {f"deepstack.{layer}" for layer in layers}
    return {n: a for n, a in feeds.items() if not n.startswith("deepstack.") or n in wanted}


class _Places:
    """Cached rows of all layers: keys and values [1, Hkv, n, D], active and parked."""

    def __init__(self, manifest: Manifest, dtype: np.dtype[Any]) -> None:
        dims = manifest.dims
        self._empty = np.zeros((1, dims.num_kv_heads, 1, dims.head_dim), dtype)
        nothing = (self._empty[:, :, :0], self._empty[:, :, :0])
        self._active = [nothing] * dims.num_layers
        self._parked = [nothing] * dims.num_layers

    def append(self, new: Sequence[tuple[Array, Array]]) -> None:
        """Add rows behind the active ones of each layer."""
        self._active = [
            (np.concatenate([k, k_new], 2), np.concatenate([v, v_new], 2))
            for (k, v), (k_new, v_new) in zip(self._active, new, strict=True)
        ]

    def part(self, images: Ints, length: int, thirds: bool) -> None:
        """Park every second of `images`; or, in thirds, every third, and drop another third."""
        stays = np.ones(length, np.bool_)
        parked = images[1::3] if thirds else images[1::2]
        stays[parked] = False
        if thirds:
            stays[images[2::3]] = False
        self._parked = [(k[:, :, parked], v[:, :, parked]) for k, v in self._active]
        self._active = [(k[:, :, stays], v[:, :, stays]) for k, v in self._active]

    def feeds(self, layer: int, parked: bool) -> dict[str, Array]:
        """A layer's caches as its graph takes them; an empty one is one row of length 0."""
        found: dict[str, Array] = {}
        nothing = (self._empty[:, :, :0], self._empty[:, :, :0])
        kept = {
            "active": self._active[layer],
            "parked": self._parked[layer] if parked else nothing,
        }
        for place, (k, v) in kept.items():
            rows = k.shape[2]
            found[f"{place}_len.{layer}"] = np.array([rows])
            found[f"k_{place}.{layer}"] = np.ascontiguousarray(k) if rows else self._empty
            found[f"v_{place}.{layer}"] = np.ascontiguousarray(v) if rows else self._empty
        return found

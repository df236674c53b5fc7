"""Compare a package with transformers layer by layer, with a few layers in memory at a time.

transformers' model runs once over a prompt, its weights streamed. Each decoder layer of the
package is given the very state that transformers' layer was given, so a wrong layer shows by
itself and does not spoil those behind it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from avl_export.check.compare import KEEP, TOLERANCE, check_dtype, graph_name
from avl_export.check.graphs import Graph, dtype_of, read_graph
from avl_export.check.reference import empty_model, forward, watch
from avl_export.check.streaming import Load
from avl_export.check.table import Row, Table, flat, ignore, largest
from avl_export.check.walk import Places, Rows, check_prompt, embed, encoded, pick
from avl_export.families import Family
from avl_plugins.graph_io import DEEPSTACK, HIDDEN, LOGITS, MADE, STATE, TAP, named, width
from avl_runtime.package.manifest import Segment
from avl_runtime.package.package import Package
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision import Kind

ROUNDING = {"fp32": 1e-6, "fp16": 2e-3}
LAYER = re.compile(r"(.+\.(?:layers?|blocks?))\.(\d+)\.")
CLOSE = 0.05  # rows of one state nearer than this, relative to its largest value, are the same

Array = npt.NDArray[Any]


def check_layers(
    package: Package, family: Family, load: Load, tell: Callable[[Row], None] = ignore
) -> list[Row]:
    """Compare every layer of `package` with transformers'.

    Args:
        load: reads the parameters of transformers' model.
        tell: hears of each row when it is known.

    Raises:
        CheckError: names the first layer that differs.
    """
    check_dtype(package)
    dtype = package.manifest.dtype
    table = Table(TOLERANCE[dtype], tell, ROUNDING[dtype])
    prompt, model = check_prompt(package), empty_model(family)
    encoders = _Encoders(package, prompt, table)
    encoders.watch(model)
    decoder = _Decoder(package, prompt, table, encoders)
    # Told a number, Gemma 4 runs the layers that read another's rows on the last token alone.
    last = 1 if package.manifest.dims.shared is None else torch.tensor([-1])
    out = forward(
        family, model, prompt, decoder.compare, load, use_cache=False, logits_to_keep=last
    )
    decoder.compare_head(out.logits[:, -1:].float().numpy())  # some give all
    table.refuse("every layer", "transformers'", KEEP)
    return table.rows


class _Decoder:
    """The decoder layers of a package, run one at a time."""

    def __init__(self, package: Package, prompt: Prompt, table: Table, encoders: _Encoders) -> None:
        self.package, self.table, self.encoders = package, table, encoders
        mask, nothing = prompt.image_mask, np.zeros(0, np.float32)
        rows = Rows(nothing, prompt.positions, nothing, mask, prompt.ends)
        self._feeds = rows.feeds(0, len(mask))
        self._empty = Places(package.manifest, dtype_of(package))
        self._opened: tuple[str, Graph] | None = None
        self._rank = 3
        self._last: tuple[int, Array] | None = None
        self._embedded = nothing
        self._sources = package.manifest.dims.sources
        self._made: dict[str, Array] = {}  # new rows that later layers read too
        self._stored = embed(package, prompt)[None, :, package.manifest.dims.hidden_size :]

    def compare(
        self, layer: int, given: Array, out: Array, after: Array, beside: Array | None
    ) -> None:
        """Run `layer` on what transformers' layer was `given`, see `reference.Hear`."""
        if layer == 0:
            self.encoders.compare(given[0])
            self._embedded = given
        segment, graph = self._graph(layer)
        feeds = self._feeds_of(segment, layer, given, beside)
        if layer in segment.deepstack:
            feeds[named(DEEPSTACK, layer)] = after - out
            self.encoders.compare_deepstack(layer, (after - out)[0])
        name = named(TAP, layer)
        if name not in graph.made_by:
            name = STATE
        rows = [named(kind, layer) for kind in (MADE.keys, MADE.values)]
        wanted = rows if layer in self._sources.values() else []
        found, *made = graph.run(feeds, [name, *wanted])
        self._made |= dict(zip(wanted, made, strict=True))
        found = found[..., : given.shape[-1]]
        self._rank, self._last = found.ndim, (layer, after)
        self.table.add_state(f"decoder layer {layer}", found, after, given)

    def compare_head(self, logits: Array) -> None:
        """Run what follows the last layer that was compared."""
        if self._last is None:
            raise RuntimeError("logits before any layer")
        layer, given = self._last
        segment, graph = self._graph(layer)
        (found,) = graph.run(self._feeds_of(segment, layer + 1, given), [LOGITS])
        self.table.add_state("final norm and output matrix", found, logits)

    def _graph(self, layer: int) -> tuple[Segment, Graph]:
        segment = next(s for s in self.package.manifest.segments if layer < s.last_layer)
        if self._opened is None or self._opened[0] != segment.file:
            self._opened = (segment.file, read_graph(self.package, segment.file))
        return segment, self._opened[1]

    def _feeds_of(
        self, segment: Segment, layer: int, given: Array, beside: Array | None = None
    ) -> dict[str, Array]:
        """What `layer` reads: its input, positions, and what it keeps before the first token."""
        graph = self.package.manifest.graph_of(segment)
        rows = given if beside is None else self._wide(segment, layer, given, beside)
        feeds = {HIDDEN: rows, **pick(self._feeds, graph)}
        if layer > segment.first_layer:
            # Inside a segment a state may lie as rows [B * S, C], see flatten.py.
            matrix = given.reshape(-1, given.shape[-1])
            feeds[named(TAP, layer - 1)] = matrix if self._rank == 2 else given
        if layer < segment.last_layer:
            source = self._sources.get(layer, layer)
            feeds |= self._empty.feeds(source, parked=False)
            if source != layer:
                new = [named(kind, source) for kind in (MADE.keys, MADE.values)]
                feeds |= {name: self._made[name] for name in new}
        return feeds

    def _wide(self, segment: Segment, layer: int, given: Array, beside: Array) -> Array:
        """Rows as a segment reads them, as far as `layer` looks at them."""
        dims = self.package.manifest.dims
        if segment.first_layer == 0:  # it makes what layers are given of what is stored of tokens
            return np.concatenate([self._embedded, self._stored], -1)
        rows = np.zeros((*given.shape[:2], width(dims, segment.first_layer)), given.dtype)
        rows[..., : dims.hidden_size] = given
        at = dims.hidden_size + dims.layer_inputs * (layer - segment.first_layer)
        rows[..., at : at + dims.layer_inputs] = beside
        return rows


class _Encoders:
    """The encoders that a prompt needs, and what transformers' layers of the same names do.

    transformers may keep patches in another order, or with padding where the package has none, or
    without: rows of states are matched by what the first layer is given.
    """

    def __init__(self, package: Package, prompt: Prompt, table: Table) -> None:
        self.package, self.prompt, self.table = package, prompt, table
        self.files = package.manifest.encoders
        used = {self.files[media.kind] for media in prompt.media}
        self.graphs = {file: read_graph(package, file) for file in sorted(used)}
        self.layers = {file: _layers(graph) for file, graph in self.graphs.items()}
        # By the layer's prefix and the number of layers before.
        self.seen: dict[tuple[str, int], list[Array]] = {}
        self.taps: dict[str, list[list[Array]]] = {}  # by file: of each run the states [rows, C]
        self.deepstack: Array | None = None

    def watch(self, model: nn.Module) -> None:
        """From now on, keep the states of transformers' encoder layers."""
        for prefix, numbers in dict(self.layers.values()).items():
            for index, number in enumerate(numbers):
                layer = model.get_submodule(f"{prefix}.{number}")
                watch(layer, partial(self._keep, prefix, index), entering=True)

    def _keep(self, prefix: str, before: int, state: Array) -> None:
        self.seen.setdefault((prefix, before), []).append(flat(state))

    def compare(self, given: Array) -> None:
        """Run the encoders; `given` [N, C] is what transformers' first decoder layer reads."""
        mask, columns = self.prompt.image_mask, given.shape[-1]
        self.table.add_state(
            "token embedding", embed(self.package, self.prompt)[~mask, :columns], given[~mask]
        )
        features = encoded(self.package.manifest, self.prompt, self._encode)
        towers: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        for file in self.taps:
            prefix, numbers = self.layers[file]
            towers.setdefault((prefix, tuple(numbers)), []).append(file)
        for files in towers.values():  # of one tower: its layers saw what all its graphs read
            runs = [run for file in files for run in self.taps[file]]
            joined = [np.concatenate(states) for states in zip(*runs, strict=True)]
            self._compare_layers(files[0], joined)
        name = "last vision layer and projector"
        self.table.add_state(name, np.concatenate([one.rows for one in features]), given[mask])
        self.deepstack = np.concatenate([one.deepstack for one in features], 1)

    def compare_deepstack(self, layer: int, added: Array) -> None:
        """Compare what is `added` [N, C] to what decoder layer `layer` puts out."""
        if self.deepstack is None:
            raise RuntimeError("deepstack features before any were made")
        found = self.deepstack[self.package.manifest.deepstack_layers.index(layer)]
        expected = added[self.prompt.image_mask]
        self.table.add_state(f"deepstack features for layer {layer}", found, expected)

    def _encode(self, kind: Kind, inputs: Mapping[str, Array]) -> list[Array]:
        """The graph's outputs; notes the states before each layer."""
        file = self.files[kind]
        graph = self.graphs[file]
        prefix, numbers = self.layers[file]
        taps = [graph.enters(f"{prefix}.{number}.") for number in numbers]
        outputs = [output.name for output in graph.model.graph.output]
        found = graph.run(inputs, [*taps, *outputs])
        arrays = [np.asarray(array, np.float32) for array in found]
        self.taps.setdefault(file, []).append([flat(state) for state in arrays[: len(taps)]])
        return arrays[len(taps) :]

    def _compare_layers(self, file: str, states: list[Array]) -> None:
        prefix, numbers = self.layers[file]
        if not numbers:
            return
        seen = [np.concatenate(self.seen[prefix, n]) for n in range(len(numbers))]
        if len(seen[0]) > len(states[0]):
            held = matching_rows(seen[0], states[0])  # without transformers' padding
            seen = seen if held is None else [one[held] for one in seen]
        order = matching_rows(states[0], seen[0])
        label = graph_name(file)
        if order is None:
            order = np.arange(len(states[0]))
        self.table.add_state(f"{label} embeddings", states[0][order], seen[0])
        begun = seen[0]
        for index in range(1, len(numbers)):
            if len(states[index]) != len(states[index - 1]):  # merged on the way
                again = matching_rows(states[index], seen[index])
                order = np.arange(len(states[index])) if again is None else again
                begun = np.zeros_like(seen[index])
            found, expected = states[index][order], seen[index]
            # Errors add up on the way, so they are judged by what all layers so far added.
            name = f"{label} layer {numbers[index - 1]}"
            self.table.add_state(name, found, expected, begun)


def _layers(graph: Graph) -> tuple[str, list[int]]:
    """The longest run of layers whose weights the graph reads: their prefix and numbers."""
    names = (LAYER.match(weight.name) for weight in graph.model.graph.initializer)
    found = {(match[1], int(match[2])) for match in names if match}
    if not found:
        return "", []
    (prefix, _), *_ = Counter(prefix for prefix, _ in found).most_common(1)
    return prefix, sorted(number for name, number in found if name == prefix)


def matching_rows(found: Array, expected: Array) -> npt.NDArray[np.int64] | None:
    """For each row of `expected` [N, C] the row of `found` [M, C] that it equals, or None.

    Rows may lie in another order, and `found` may have more: padding. Where several equal one
    (every picture has the same class token), it is the one next to its neighbour's.
    """
    bound = CLOSE * largest(expected)
    if found.shape == expected.shape and largest(found - expected) <= bound:
        return np.arange(len(found))
    if found.shape[1:] != expected.shape[1:]:
        return None
    order = np.full(len(expected), -1)
    unclear: dict[int, set[int]] = {}
    for index, row in enumerate(expected):
        near = np.flatnonzero(np.abs(found - row).max(1) <= bound)
        if len(near) == 1:
            order[index] = near[0]
        else:
            unclear[index] = set(near.tolist())
    for index, candidates in unclear.items():
        behind = order[index + 1] - 1 if index + 1 < len(order) and order[index + 1] > 0 else -1
        ahead = order[index - 1] + 1 if index > 0 and order[index - 1] >= 0 else -1
        order[index] = next((int(n) for n in (behind, ahead) if int(n) in candidates), -1)
    if (order < 0).any() or len(set(order.tolist())) < len(order):
        return None
    return order

"""Compare the encoders of a package with transformers' tower, layer by layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.utils.hooks import RemovableHandle

from avl_export.check.layer_table import Table, flat, largest
from avl_export.check.slices import Graph, read_graph
from avl_runtime.package.package import Package
from avl_runtime.prompts.embedding import Embedding
from avl_runtime.prompts.processor import Prompt
from avl_runtime.vision import Features

LAYER = re.compile(r"(.+\.(?:layers?|blocks?))\.(\d+)\.")
CLOSE = 0.05  # rows of one state nearer than this, relative to its largest value, are the same

Array = npt.NDArray[Any]
States = dict[tuple[str, int], list[Array]]


class Encoders:
    """The encoders that a prompt needs, and what transformers' layers of the same names do.

    transformers may keep patches in another order, or without padding: rows of states are matched
    by what the first layer is given.
    """

    def __init__(self, package: Package, prompt: Prompt, table: Table) -> None:
        self.package, self.prompt, self.table = package, prompt, table
        self.files = package.manifest.encoders
        used = {self.files[media.kind] for media in prompt.media}
        self.graphs = {file: read_graph(package, file) for file in sorted(used)}
        self.layers = {file: _layers(graph) for file, graph in self.graphs.items()}
        self.seen: States = {}  # (layer's prefix, number of layers before) -> states
        self.deepstack: Array | None = None

    def watch(self, model: nn.Module) -> list[RemovableHandle]:
        """Hooks that keep the states of transformers' encoder layers."""
        hooks = []
        for prefix, numbers in dict(self.layers.values()).items():
            for index, number in enumerate(numbers):
                layer = model.get_submodule(f"{prefix}.{number}")
                if index == 0:
                    hooks.append(layer.register_forward_pre_hook(self._keep_input(prefix)))
                hooks.append(layer.register_forward_hook(self._keep_output(prefix, index + 1)))
        return hooks

    def _keep_input(self, prefix: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            self.seen.setdefault((prefix, 0), []).append(flat(args[0].float().numpy()))

        return hook

    def _keep_output(self, prefix: str, before: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            self.seen.setdefault((prefix, before), []).append(flat(state.float().numpy()))

        return hook

    def compare(self, given: Array) -> None:
        """Run the encoders; `given` [N, C] is what transformers' first decoder layer reads."""
        mask = self.prompt.image_mask
        ids = np.where(mask, 0, self.prompt.input_ids)
        rows = Embedding(self.package).lookup(ids)
        self.table.add("token embedding", rows[~mask], given[~mask])
        features: list[Features] = []
        taps: dict[str, list[list[Array]]] = {}
        for media in self.prompt.media:
            file = self.files[media.kind]
            runs = []
            for inputs in media.runs():
                states, outputs = self._encode(file, inputs)
                taps.setdefault(file, []).append(states)
                runs.append(outputs)
            features.append(media.features(runs))
        for file, seen in taps.items():
            joined = [np.concatenate(states) for states in zip(*seen, strict=True)]
            self._compare_layers(file, joined)
        name = "last vision layer and projector"
        self.table.add(name, np.concatenate([one.rows for one in features]), given[mask])
        self.deepstack = np.concatenate([one.deepstack for one in features], 1)

    def compare_deepstack(self, layer: int, added: Array) -> None:
        """Compare what is `added` [N, C] to what decoder layer `layer` puts out."""
        layers = [n for segment in self.package.manifest.segments for n in segment.deepstack]
        if self.deepstack is None:
            raise RuntimeError("deepstack features before any were made")
        found = self.deepstack[layers.index(layer)]
        expected = added[self.prompt.image_mask]
        self.table.add(f"deepstack features for layer {layer}", found, expected)

    def _encode(self, file: str, inputs: dict[str, Array]) -> tuple[list[Array], list[Array]]:
        """States before each layer [rows, C], and the graph's outputs."""
        graph = self.graphs[file]
        prefix, numbers = self.layers[file]
        taps = [graph.enters(f"{prefix}.{number}.") for number in numbers]
        outputs = [output.name for output in graph.model.graph.output]
        found = graph.run(inputs, [*taps, *outputs])
        arrays = [np.asarray(array, np.float32) for array in found]
        return [flat(state) for state in arrays[: len(taps)]], arrays[len(taps) :]

    def _compare_layers(self, file: str, states: list[Array]) -> None:
        prefix, numbers = self.layers[file]
        if not numbers:
            return
        seen = [np.concatenate(self.seen[prefix, n]) for n in range(len(numbers))]
        order = matching_rows(states[0], seen[0])
        label = file.removesuffix(".onnx")
        if order is None:
            order = np.arange(len(states[0]))
        self.table.add(f"{label} embeddings", states[0][order], seen[0])
        for index in range(1, len(numbers)):
            found, expected = states[index][order], seen[index]
            # Errors add up on the way, so they are judged by what all layers so far added.
            name = f"{label} layer {numbers[index - 1]}"
            self.table.add(name, found, expected, seen[0])


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

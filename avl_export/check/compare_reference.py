"""Compare a backend on a package with transformers in fp32, tensor by tensor.

transformers reads a prompt and a reply in one pass; the backend reads the prompt in chunks and the
reply token by token, once with all cached rows active and once with half of the picture's parked
but read by every step, which comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from avl_export.check.check import check_prompt
from avl_export.check.compare import graph_name, refuse_first, tolerance_of
from avl_export.check.compare_walk import Mode, Rows, encode, rows_of, walk
from avl_export.check.layer_table import Row
from avl_export.check.output_table import Output, Outputs
from avl_export.check.runners import Runner
from avl_export.families import Family
from avl_runtime.package.manifest import Manifest, Segment
from avl_runtime.package.package import Package
from avl_runtime.prompts.processor import Prompt

MODES: tuple[Mode, ...] = ("dense", "parked")  # both read every row in every step

Array = NDArray[Any]


def compare_with_transformers(
    package: Package,
    family: Family,
    model: nn.Module,
    tested: Runner,
    tell: Callable[[Row], None],
) -> list[Row]:
    """Run `tested`, and transformers' model of the same checkpoint.

    Args:
        model: transformers' in fp32, with the weights that the package has.
        tell: hears of the worst output of each graph in each mode.

    Returns:
        All outputs, in the order in which they were computed.

    Raises:
        CheckError: names the first output that differs.
    """
    manifest, prompt = package.manifest, check_prompt(package)
    table = Outputs(tolerance_of(manifest), tell)
    expected = _transformers(family, model, prompt)
    parts = [encode(tested, media) for media in prompt.media]
    features = np.concatenate([part.rows for part in parts])
    table.add("encoders", [Output("features", features, expected.features)])
    rows = rows_of(package, prompt, parts)
    for mode in MODES:
        runs = [_Runs() for _ in manifest.segments]
        walk(manifest, tested, rows, mode, _keeper(manifest, runs))
        for number, segment in enumerate(manifest.segments):
            place = f"{mode} {graph_name(segment.file)}"
            table.add(place, _outputs(manifest, segment, runs[number], rows, expected))
    refuse_first(table, tested.name, "transformers")
    return table.rows


@dataclass(frozen=True, slots=True)
class _Expected:
    """float32: features [tokens, C]; of layers: outputs [N, C], keys and values [Hkv, N, D]."""

    features: Array
    layers: list[Array]
    keys: list[Array]
    values: list[Array]
    logits: Array  # [N, V]


def _transformers(family: Family, model: Any, prompt: Prompt) -> _Expected:
    layers: list[Array] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        layers.append(state[0].float().numpy())

    hooks = [layer.register_forward_hook(keep) for layer in family.layers_of(model)]
    inputs = family.reference_inputs(prompt)
    try:
        with torch.no_grad():
            features = family.reference_features(model, inputs)
            out = model(**inputs, use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()
    caches = out.past_key_values.layers
    return _Expected(
        features=features.float().numpy(),
        layers=layers,
        keys=[cache.keys[0].float().numpy() for cache in caches],
        values=[cache.values[0].float().numpy() for cache in caches],
        logits=out.logits[0].float().numpy(),
    )


@dataclass(slots=True)
class _Runs:
    """A segment's runs over all rows, one after the other.

    Attributes:
        outputs: [S, C], or [1, V] logits.
        keys, values: [L, Hkv, S, D].
    """

    outputs: list[Array] = field(default_factory=list)
    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)

    @property
    def ends(self) -> NDArray[np.int64]:
        """The last row of each run."""
        return np.cumsum([run.shape[2] for run in self.keys]) - 1

    def keep(self, segment: Segment, found: Mapping[str, Array]) -> None:
        """Add a run's outputs."""
        layers = range(segment.first_layer, segment.last_layer)
        last = "logits" if "logits" in found else "hidden_out"
        self.outputs.append(np.asarray(found[last][0], np.float32))
        for kept, name in ((self.keys, "k_new"), (self.values, "v_new")):
            arrays = [found[f"{name}.{layer}"][0] for layer in layers]
            kept.append(np.asarray(arrays, np.float32))


def _keeper(manifest: Manifest, runs: list[_Runs]) -> Callable[..., None]:
    def keep(
        _label: str, number: int, _feeds: Mapping[str, Array], found: Mapping[str, Array]
    ) -> None:
        runs[number].keep(manifest.segments[number], found)

    return keep


def _outputs(
    manifest: Manifest, segment: Segment, runs: _Runs, rows: Rows, expected: _Expected
) -> list[Output]:
    keys, values = (np.concatenate(arrays, 2) for arrays in (runs.keys, runs.values))
    outputs = []
    for index, layer in enumerate(range(segment.first_layer, segment.last_layer)):
        outputs.append(Output(f"k_new.{layer}", keys[index], expected.keys[layer]))
        outputs.append(Output(f"v_new.{layer}", values[index], expected.values[layer]))
    found = np.concatenate(runs.outputs)
    if segment == manifest.segments[-1]:
        return [*outputs, Output("logits", found, expected.logits[runs.ends])]
    last = segment.last_layer - 1
    state = expected.layers[last]
    if last in segment.deepstack:  # transformers adds these between layers
        state = state + rows.deepstack[manifest.deepstack_layers.index(last)]
    return [*outputs, Output("hidden_out", found, state)]

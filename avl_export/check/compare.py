"""Compare a package with transformers, or two backends on one package, tensor by tensor.

A package, on a backend or as its graphs are, reads a random picture (and video) and a question in
chunks, and a reply token by token. transformers has read all of it in one pass: attention is
causal, so each row must come out the same.

Of two backends, one is the reference: every run of it, with dense attention and with parked and
dropped rows as A-VL has them, is given to the other too, with the very same inputs, so that a
difference shows where it arises and is not carried on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_export.check.graphs import GraphRunner
from avl_export.check.reference import Reference
from avl_export.check.runners import Runner
from avl_export.check.table import CheckError, Output, Row, Table, flat, ignore, largest
from avl_export.check.walk import Mode, check_prompt, encoded, rows_of, walk
from avl_plugins import graph_io
from avl_plugins.graph_io import (
    CACHED,
    HIDDEN,
    LAYER_KINDS,
    LOGITS,
    MADE,
    MASSES,
    STATE,
    TAP,
    named,
)
from avl_runtime.package.manifest import Manifest
from avl_runtime.package.package import Package
from avl_runtime.vision import Kind

# Of the largest value. In fp32 the rounding of sums of some thousand products over tens of layers
# stays below 1e-4 of it, a wrong weight or op moves results by their own size: 1e-3 separates the
# two. In fp16 transformers itself differs from its fp32 results by about 1e-2. Rounding all results
# with the unit roundoff u (2^-8 for bfloat16, 2^-11 for float16) comes to 1 to 4 u sqrt(layers):
# each layer adds about as much as the one before, in another direction. Measured with transformers
# on a CPU against float64, the largest of states, keys, values and logits in bfloat16: 1.7e-2 for
# avl-tiny (6 layers), 1.5e-2 to 2.6e-2 for random models of the families (3 or 4), 3.2e-2 to 5.3e-2
# for random Llama, Qwen2 and Qwen3 of 32 layers; in float16 an eighth of that. Two backends that
# both round differ by sqrt(2) times as much, 7.5e-2; what is allowed is the double of that and some
# more.
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1}
# The least for codes, by the root of the layers. Some backends round the rows that codes are
# multiplied with to 8 bits too, by up to 1/254 of a block's largest value: avl-tiny in INT4 is off
# by 2.4e-2 after 6 layers, half of this.
QUANTIZED = 2e-2
CPU = ("fp32", "fp16")  # what ONNX Runtime's CPU computes in
KEEP = (
    "report it with the checkpoint's name if neither was changed since; avl-export --no-check "
    "exports without comparing"
)
OTHER = "report it with the package's avl.json, or use another backend"

MADE_STATES = {state.made for kind in LAYER_KINDS.values() for state in kind.states}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Report:
    """What a comparison of a package with transformers found; `quantization` see `Reference`."""

    rows: Sequence[Row]
    quantization: float | None = None

    @property
    def logits(self) -> float:
        """The largest logit difference."""
        return max(row.difference for row in self._of(LOGITS))

    @property
    def logit_scale(self) -> float:
        """The largest logit, to judge it by."""
        return max(row.largest for row in self._of(LOGITS))

    @property
    def features(self) -> float:
        """The largest difference of image features."""
        return max(row.difference for row in self._of("features"))

    def line(self) -> str:
        """The report for people."""
        return (
            f"check against transformers: largest logit difference {self.logits:.1e} "
            f"(largest logit {self.logit_scale:.1f}), image features {self.features:.1e}"
            + (
                f"; quantized weights themselves move logits by up to {self.quantization:.1e}"
                if self.quantization is not None
                else ""
            )
        )

    def _of(self, output: str) -> list[Row]:
        return [row for row in self.rows if row.name.endswith(f" {output}")]


def check_package(
    package: Package, reference: Reference, tell: Callable[[Row], None] = ignore
) -> Report:
    """Compare a package's graphs as they are with transformers.

    Raises:
        CheckError: they differ; names the first layer that does.
    """
    table = Table(TOLERANCE[package.manifest.dtype], tell)
    _run_against(package, reference, GraphRunner(package), ("parked",), table)
    first = table.first_wrong
    if first is None:
        return Report(table.rows, reference.quantization)
    where = "the vision tower or the projector"
    if not first.name.endswith(" features"):
        tapped = Table(table.tolerance)
        _run_against(package, reference, GraphRunner(package, taps=True), ("parked",), tapped)
        where = _where(package.manifest, tapped)
    raise CheckError(
        f"expected the package to compute what transformers does, found a difference of "
        f"{first.difference:.1e} where values reach {first.largest:.1e}, first in {where}; {KEEP}",
        table.rows,
    )


def check_dtype(package: Package, way_out: str = "") -> None:
    """Refuse to run the graphs of a package that ONNX Runtime's CPU cannot run.

    Args:
        way_out: what else can be done, beside another export.

    Raises:
        CheckError: it computes in bf16.
    """
    dtype = package.manifest.dtype
    if dtype not in CPU:
        raise CheckError(
            f"expected a package in {' or '.join(CPU)}, found {dtype}, which ONNX Runtime's CPU "
            f"cannot run; export with --dtype fp32 to check{way_out}"
        )


def compare_with_transformers(
    package: Package, reference: Reference, tested: Runner, tell: Callable[[Row], None]
) -> list[Row]:
    """Run `tested`, with all rows active and with half of the picture's parked, read by every step.

    Args:
        tell: hears of the worst output of each graph in each mode.

    Returns:
        All outputs, in the order in which they were computed.

    Raises:
        CheckError: names the first output that differs.
    """
    table = Table(tolerance_of(package.manifest), tell)
    _run_against(package, reference, tested, ("dense", "parked"), table)
    table.refuse(tested.name, "transformers", OTHER)
    return table.rows


def compare_backends(
    package: Package, reference: Runner, tested: Runner, tell: Callable[[Row], None]
) -> list[Row]:
    """Run `tested` beside `reference`.

    Args:
        tell: hears of the worst output of each run of a graph.

    Returns:
        All outputs, in the order in which they were computed.

    Raises:
        CheckError: names the first output that differs.
    """
    manifest, prompt = package.manifest, check_prompt(package)
    table = Table(tolerance_of(manifest), tell)

    def encode(kind: Kind, inputs: Mapping[str, Array]) -> list[Array]:
        outputs = reference.encode(kind, inputs)
        names = [name.removeprefix("image_") for name in manifest.encoded]
        pairs = zip(names, tested.encode(kind, inputs), outputs, strict=True)
        table.add(graph_name(manifest.encoders[kind]), [Output(*pair) for pair in pairs])
        return outputs

    rows = rows_of(package, prompt, encoded(manifest, prompt, encode))
    modes: tuple[Mode, ...] = ("dense", "avl")
    for mode in modes:
        for step, number, feeds, expected in walk(
            manifest, reference, rows, mode, tested.most_rows
        ):
            segment = manifest.segments[number]
            found = tested.run(number, feeds)
            outputs = _outputs(manifest.graph_of(segment), found, expected, feeds)
            table.add(f"{step} {graph_name(segment.file)}", outputs)
    table.refuse(tested.name, reference.name, OTHER)
    return table.rows


def graph_name(file: str) -> str:
    """A graph as tables name it: decoder.1 of decoder.1.onnx."""
    return file.removesuffix(".onnx")


def tolerance_of(manifest: Manifest) -> float:
    """How far outputs of a backend may differ, relative to their largest value."""
    rounded = 0 if manifest.quantization is None else manifest.dims.num_layers
    return max(TOLERANCE[manifest.dtype], QUANTIZED * math.sqrt(rounded))


def _run_against(
    package: Package, reference: Reference, tested: Runner, modes: Sequence[Mode], table: Table
) -> None:
    """Fill `table`; what a segment puts out is put together from all of its runs in a mode."""
    manifest, prompt, expected = package.manifest, check_prompt(package), reference.tensors
    parts = encoded(manifest, prompt, tested.encode)
    features = np.concatenate([part.rows for part in parts])
    wanted = expected["embedded"][prompt.image_mask]
    table.add("encoders", [Output("features", features, wanted)])
    if table.first_wrong is not None:  # no decoder can be right then
        return
    rows = rows_of(package, prompt, parts)
    for mode in modes:
        runs: list[dict[str, list[Array]]] = [{} for _ in manifest.segments]
        for run in walk(manifest, tested, rows, mode):
            for name, array in run.found.items():
                if graph_io.kind_of(name) not in MASSES:
                    runs[run.segment].setdefault(name, []).append(np.asarray(array, np.float32))
        for segment, kept in zip(manifest.segments, runs, strict=True):
            found = {name: _joined(name, arrays) for name, arrays in kept.items()}
            if STATE in found:  # what later layers read lies behind it
                found[STATE] = found[STATE][:, : manifest.dims.hidden_size]
            graph = manifest.graph_of(segment)
            keys = kept[named(MADE.keys, graph.row_layers[0])]
            ends = np.cumsum([array.shape[2] for array in keys]) - 1
            given = {
                STATE: expected[named(TAP, segment.last_layer - 1)],
                LOGITS: expected[LOGITS][ends],
            }
            place = f"{mode} {graph_name(segment.file)}"
            table.add(place, _outputs(graph, found, {**expected, **given}))


def _joined(name: str, arrays: Sequence[Array]) -> Array:
    """The outputs of runs over all rows, one after the other, see `Reference`; the last state."""
    kind = graph_io.kind_of(name)
    if kind in (MADE.keys, MADE.values):
        return np.concatenate([array[0] for array in arrays], 1)
    if kind in MADE_STATES:
        state: Array = arrays[-1][0]
        return state
    return np.concatenate([flat(array) for array in arrays])


def _outputs(
    graph: graph_io.Segment,
    found: Mapping[str, Array],
    expected: Mapping[str, Array],
    feeds: Mapping[str, Array] | None = None,
) -> list[Output]:
    """The outputs of a segment, layer by layer, and what it hands on; masses if fed the same."""
    outputs = []
    for layer in graph.layers:
        names = [named(kind, layer) for kind in graph.kind(layer).makes if kind not in MASSES]
        outputs += [
            Output(name, found[name], _filled(expected[name], found[name])) for name in names
        ]
        if feeds is not None and graph.kind(layer).has_rows:
            outputs += _masses(layer, found, expected, feeds)
        name = named(TAP, layer)
        if name in found:
            outputs.append(Output(name, found[name], expected[name]))
    last = graph.result
    return [*outputs, Output(last, found[last], expected[last])]


def _filled(expected: Array, found: Array) -> Array:
    """Rows [..., D] with zeros behind them, where heads of a layer are smaller than others'."""
    missing = found.shape[-1] - expected.shape[-1]
    return (
        np.pad(expected, [(0, 0)] * (expected.ndim - 1) + [(0, missing)]) if missing else expected
    )


def _masses(
    layer: int,
    found: Mapping[str, Array],
    expected: Mapping[str, Array],
    feeds: Mapping[str, Array],
) -> list[Output]:
    # Rows behind a cache's length have no meaning.
    active, parked = (int(feeds[named(place.length, layer)][0]) for place in CACHED)
    lengths = zip(MASSES, (active, parked, feeds[HIDDEN].shape[1]), strict=True)
    read = {named(kind, layer): rows for kind, rows in lengths if rows}
    # All are parts of one softmax: what is little in the whole of it may differ by as much.
    scale = max(largest(expected[name][..., :rows]) for name, rows in read.items())
    return [
        Output(name, found[name][..., :rows], expected[name][..., :rows], scale)
        for name, rows in read.items()
    ]


def _where(manifest: Manifest, table: Table) -> str:
    """Where the decoder first departs from transformers: the first state that does."""
    last = {graph_name(part.file): part.last_layer - 1 for part in manifest.segments}
    for row in table.rows:
        *_, graph, output = row.name.split()
        kind, _, layer = output.partition(".")
        if not row.ok and kind in (TAP, STATE):
            return f"decoder layer {layer or last[graph]}"
    return "the final norm, the output matrix or the reading of caches"

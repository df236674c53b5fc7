"""Compare two backends on one package, tensor by tensor.

The reference encodes a random picture (and video), reads a question about it and decodes a reply,
with dense attention and with parked and dropped rows as A-VL has them. Every run of it is given to
the other backend too, with the very same inputs, so that a difference shows where it arises and
is not carried on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from avl_export.check.check import CheckError, check_prompt
from avl_export.check.compare_walk import Mode, encode, rows_of, walk
from avl_export.check.layer_table import Row, largest
from avl_export.check.output_table import Output, Outputs
from avl_export.check.runners import MASSES, Runner
from avl_runtime.package.manifest import Manifest, Segment
from avl_runtime.package.package import Package
from avl_runtime.vision import Kind

# Of the largest value; for fp32 and fp16 see `check.TOLERANCE`. Rounding all results with the unit
# roundoff u (2^-8 for bfloat16, 2^-11 for float16) comes to 1 to 4 u sqrt(layers): each layer adds
# about as much as the one before, in another direction. Measured with transformers on a CPU against
# float64, the largest of states, keys, values and logits in bfloat16: 1.7e-2 for avl-tiny (6
# layers), 1.5e-2 to 2.6e-2 for random models of the families (3 or 4), 3.2e-2 to 5.3e-2 for random
# Llama, Qwen2 and Qwen3 of 32 layers; in float16 an eighth of that. Two backends that both round
# differ by sqrt(2) times as much, 7.5e-2; what is allowed is the double of that and some more. A
# wrong weight or wire moves results by their own size.
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1}
# The least for codes, by the root of the layers. Some backends round the rows that codes are
# multiplied with to 8 bits too, by up to 1/254 of a block's largest value: avl-tiny in INT4 is off
# by 2.4e-2 after 6 layers, half of this.
QUANTIZED = 2e-2
MODES: tuple[Mode, ...] = ("dense", "avl")

Array = NDArray[Any]


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
    table = Outputs(tolerance_of(manifest), tell)

    def encoded(kind: Kind, inputs: Mapping[str, Array], outputs: Sequence[Array]) -> None:
        names = ("features", "deepstack")[: len(outputs)]
        pairs = zip(names, tested.encode(kind, inputs), outputs, strict=True)
        table.add(graph_name(manifest.encoders[kind]), [Output(*pair) for pair in pairs])

    def ran(
        label: str, number: int, feeds: Mapping[str, Array], found: Mapping[str, Array]
    ) -> None:
        segment = manifest.segments[number]
        outputs = _outputs(segment, feeds, tested.run(number, feeds), found)
        table.add(f"{label} {graph_name(segment.file)}", outputs)

    rows = rows_of(package, prompt, [encode(reference, media, encoded) for media in prompt.media])
    for mode in MODES:
        walk(manifest, reference, rows, mode, ran, tested.most_rows)
    refuse_first(table, tested.name, reference.name)
    return table.rows


def graph_name(file: str) -> str:
    """A graph as tables name it: decoder.1 of decoder.1.onnx."""
    return file.removesuffix(".onnx")


def tolerance_of(manifest: Manifest) -> float:
    """How far outputs of a package may differ, relative to their largest value."""
    rounded = 0 if manifest.quantization is None else manifest.dims.num_layers
    return max(TOLERANCE[manifest.dtype], QUANTIZED * math.sqrt(rounded))


def refuse_first(table: Outputs, tested: str, reference: str) -> None:
    """Fail if an output differs.

    Raises:
        CheckError: names the first one.
    """
    first = table.first_wrong
    if first is not None:
        more = sum(not row.ok for row in table.rows) - 1
        raise CheckError(
            f"expected {tested} to compute what {reference} does, found {first.name} first to "
            f"differ, by up to {first.difference:.1e} where values reach {first.largest:.1e} "
            f"(cosine {1 - first.cosine:.6f}), and {more} outputs after it; report it with the "
            "package's avl.json, or use another backend"
        )


def _outputs(
    segment: Segment,
    feeds: Mapping[str, Array],
    found: Mapping[str, Array],
    expected: Mapping[str, Array],
) -> list[Output]:
    """The outputs of a segment, layer by layer, and what it hands on."""
    outputs = []
    for layer in range(segment.first_layer, segment.last_layer):
        names = (f"k_new.{layer}", f"v_new.{layer}")
        outputs += [Output(name, found[name], expected[name]) for name in names]
        # Rows behind a cache's length have no meaning.
        active, parked = (int(feeds[f"{place}_len.{layer}"][0]) for place in ("active", "parked"))
        lengths = zip(MASSES, (active, parked, feeds["hidden"].shape[1]), strict=True)
        read = {f"{name}.{layer}": rows for name, rows in lengths if rows}
        # All are parts of one softmax: what is little in the whole of it may differ by as much.
        scale = max(largest(expected[name][..., :rows]) for name, rows in read.items())
        for name, rows in read.items():
            outputs.append(Output(name, found[name][..., :rows], expected[name][..., :rows], scale))
    last = "logits" if "logits" in expected else "hidden_out"
    return [*outputs, Output(last, found[last], expected[last])]

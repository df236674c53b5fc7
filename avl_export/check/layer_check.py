"""Compare a package with transformers layer by layer, with a few layers in memory at a time.

transformers' model runs once over a prompt, its weights streamed. Each decoder layer of the
package is given the very state that transformers' layer was given, so a wrong layer shows by
itself and does not spoil those behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avl_export.check.check import TOLERANCE, WAY_OUT, CheckError, check_prompt
from avl_export.check.encoder_check import Encoders
from avl_export.check.layer_table import Row, Table
from avl_export.check.slices import Graph, read_graph
from avl_export.check.streamed import Load, empty_model, streamed
from avl_export.families import Family
from avl_runtime.package.manifest import Segment
from avl_runtime.package.package import Package
from avl_runtime.prompts.processor import Prompt

ROUNDING = {"fp32": 1e-6, "fp16": 2e-3}

Array = npt.NDArray[Any]


def check_layers(
    package: Package, family: Family, load: Load, tell: Callable[[Row], None] = lambda _: None
) -> list[Row]:
    """Compare every layer of `package` with transformers'.

    Args:
        load: reads the parameters of transformers' model.
        tell: hears of each row when it is known.

    Raises:
        CheckError: names the first layer that differs.
    """
    dtype = package.manifest.dtype
    if dtype not in TOLERANCE:
        raise CheckError(
            f"--layers: expected a package in {' or '.join(TOLERANCE)}, found {dtype}, which "
            "ONNX Runtime's CPU cannot run; export with --dtype fp32 to check"
        )
    table = Table(TOLERANCE[dtype], ROUNDING[dtype], tell)
    _compare(package, family, load, table)
    wrong = [row for row in table.rows if not row.ok]
    if wrong:
        first, more = wrong[0], f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckError(
            f"expected every layer to compute what transformers' does, found {first.name} off by "
            f"{first.difference:.1e} where values reach {first.largest:.1e}{more}; {WAY_OUT}"
        )
    return table.rows


def _compare(package: Package, family: Family, load: Load, table: Table) -> None:
    prompt = check_prompt(package)
    model: Any = empty_model(family)
    layers = family.layers_of(model)
    encoders = Encoders(package, prompt, table)
    decoder = _Decoder(package, prompt, table, encoders)
    state: dict[str, Array] = {}

    def enter(number: int) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            given = (args[0] if args else kwargs["hidden_states"]).float().numpy()
            if number == 0:
                encoders.compare(given[0])
            else:
                decoder.compare(number - 1, state["given"], state["out"], given)
            state["given"] = given

        return hook

    def leave(_: Any, __: Any, output: Any) -> None:
        state["out"] = (output[0] if isinstance(output, tuple) else output).float().numpy()

    hooks = encoders.watch(model)
    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(enter(number), with_kwargs=True))
        hooks.append(layer.register_forward_hook(leave))
    inputs = family.reference_inputs(prompt)
    try:
        with torch.no_grad(), streamed(model, load):
            logits = model(**inputs, use_cache=False, logits_to_keep=1).logits.float().numpy()
    finally:
        for hook in hooks:
            hook.remove()
    decoder.compare(len(layers) - 1, state["given"], state["out"], state["out"])
    decoder.compare_head(len(layers) - 1, state["out"], logits)


class _Decoder:
    """The decoder layers of a package, run one at a time."""

    def __init__(self, package: Package, prompt: Prompt, table: Table, encoders: Encoders) -> None:
        self.package, self.prompt, self.table, self.encoders = package, prompt, table, encoders
        self._opened: tuple[str, Graph] | None = None
        self._rank = 3

    def compare(self, layer: int, given: Array, out: Array, expected: Array) -> None:
        """Run `layer` on what transformers' layer was `given`, [1, S, C] as all states.

        Args:
            out: what transformers' layer put out.
            expected: what its next layer was given: `out`, deepstack features added.
        """
        segment, graph = self._graph(layer)
        feeds = self._feeds(segment, layer, given)
        if layer in segment.deepstack:
            feeds[f"deepstack.{layer}"] = expected - out
            self.encoders.compare_deepstack(layer, (expected - out)[0])
        name = f"layer_out.{layer}"
        if name not in graph.made_by:
            name = "hidden_out"
        (found,) = graph.run(feeds, [name])
        self._rank = found.ndim
        self.table.add(f"decoder layer {layer}", found, expected, given)

    def compare_head(self, layer: int, given: Array, logits: Array) -> None:
        """Run what follows `layer`, the last one."""
        segment, graph = self._graph(layer)
        (found,) = graph.run(self._feeds(segment, layer + 1, given), ["logits"])
        self.table.add("final norm and output matrix", found, logits)

    def _graph(self, layer: int) -> tuple[Segment, Graph]:
        segment = next(s for s in self.package.manifest.segments if layer < s.last_layer)
        if self._opened is None or self._opened[0] != segment.file:
            self._opened = (segment.file, read_graph(self.package, segment.file))
        return segment, self._opened[1]

    def _feeds(self, segment: Segment, layer: int, given: Array) -> dict[str, Array]:
        """What `layer` reads: its input, positions, and empty caches."""
        dims, positions = self.package.manifest.dims, self.prompt.positions
        feeds: dict[str, Array] = {
            "hidden": given,
            "position_ids": positions[:, None] if len(positions) > 1 else positions,
            "row_weights": np.ones((1, 2, given.shape[1]), np.float32),
        }
        if layer > segment.first_layer:
            # Inside a segment a state may lie as rows [B * S, C], see flatten.py.
            matrix = given.reshape(-1, given.shape[-1])
            feeds[f"layer_out.{layer - 1}"] = matrix if self._rank == 2 else given
        empty = np.zeros((1, dims.num_kv_heads, 1, dims.head_dim), np.float32)
        for place in ("active", "parked"):
            feeds[f"{place}_len.{layer}"] = np.zeros(1, np.int64)
            feeds[f"k_{place}.{layer}"] = feeds[f"v_{place}.{layer}"] = empty
        return feeds

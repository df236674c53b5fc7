"""Trace a family's modules on the meta device into ONNX graphs without weights."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import nn

from avl_export.families import EncoderGraph, Family, replicate
from avl_export.families.decoders.observe import implementation
from avl_export.families.encoders import frame_attention
from avl_export.graph import attention, experts, states
from avl_export.graph import compact as compacting
from avl_export.graph.attention import LayerCaches
from avl_export.graph.holes import fill
from avl_export.graph.lower import lower_in_place
from avl_plugins import graph_io
from avl_plugins.graph_io import (
    ACTIVE,
    BATCH,
    DEEPSTACK,
    HIDDEN,
    MOST_WEIGHTINGS,
    NEW,
    PARKED,
    POSITIONS,
    WEIGHTINGS,
    WEIGHTS,
    named,
)

OPSET = 23


@dataclass(frozen=True, slots=True)
class Traced:
    """An ONNX model whose initializers named in `parameters` have no data yet.

    `parameters` maps an initializer's name to the parameter's name in the family's model. The
    graph's last `taps` outputs are hidden states after single layers, for checks. `heads` holds a
    decoder segment's query and KV heads; its first input is a hidden state. None: a vision graph.
    """

    model: ir.Model
    parameters: Mapping[str, str]
    taps: int = 0
    heads: tuple[int, int] | None = None


def deepstack_layers(family: Family, first: int, last: int) -> tuple[int, ...]:
    """Which of the layers `first` to `last` - 1 have a deepstack input."""
    return tuple(layer for layer in family.traits.deepstack if first <= layer < last)


class SegmentModule(nn.Module):
    """Layers `first` to `last` - 1 of a decoder; the last segment adds final norm and head.

    `traced` names the first of each kind of equal layers: the only ones that are traced.
    """

    def __init__(self, family: Family, first: int, last: int) -> None:
        super().__init__()
        decoder = family.decoder
        text: Any = decoder.text_model
        self.rotary_emb = text.rotary_emb
        self.layers = nn.ModuleList(decoder.layers[first:last])
        self.first = first
        firsts = replicate.firsts(list(self.layers))
        self.traced = tuple(first + index for index in sorted(set(firsts)))
        self.deepstack = deepstack_layers(family, first, last)
        is_last = last == decoder.dims.num_layers
        self.norm = decoder.norm if is_last else None
        self.lm_head = decoder.head if is_last else None
        self.embedding_scale = decoder.embedding_scale if first == 0 else 1.0
        self.logit_scale, self.softcap = decoder.logit_scale, decoder.softcap
        self.beside = decoder.inputs_of(first, last)
        self.sources = decoder.dims.sources
        self.blocks = family.traits.reach.blocks is not None
        self.axes = decoder.rope.axes
        self.turns = decoder.turns[first:last]

    def forward(
        self,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        row_weights: torch.Tensor,
        reach: list[torch.Tensor],
        caches: list[tuple[torch.Tensor, ...]],
        deepstack: list[torch.Tensor],
    ) -> tuple[Any, ...]:
        """[B, S, W] -> rows [B, S, W] or logits [B, 1, V], results a layer, tapped states.

        Caches are those of the `traced` layers, and so are the results.
        """
        added = dict(zip(self.deepstack, deepstack, strict=True))
        held = dict(zip(self.traced, caches, strict=True))
        state = LayerCaches(
            row_weights,
            held,
            tuple(reach),
            blocks=self.blocks,
            sources=self.sources,
        )
        beside = None
        if self.beside is not None:
            hidden, beside = self.beside.split(hidden)
        turns = {
            name: self.rotary_emb.get_submodule(name)(hidden, position_ids)
            for name in dict.fromkeys(self.turns)
        }
        if self.embedding_scale != 1:
            hidden = hidden * self.embedding_scale
        if self.beside is not None and beside is not None:
            beside = self.beside.made(hidden, beside)
        # Some layers scale queries by position. transformers gives them none over several axes.
        positions = position_ids if self.axes == 1 else None
        taps = []
        for number, (layer, turned) in enumerate(
            zip(self.layers, self.turns, strict=True), self.first
        ):
            own = None if beside is None else beside[:, :, number - self.first]
            shared = positions, turns[turned], state
            hidden = replicate.repeat(_run_layer, layer, hidden, *shared, own=own)
            if number in added:
                hidden = hidden + added[number]
            taps.append(hidden)
        if self.norm is None or self.lm_head is None:
            out = taps.pop()
            if self.beside is not None and beside is not None:
                out = self.beside.joined(out, beside)
            return out, state.results, taps
        last = self.norm(hidden[:, -1:])
        if self.logit_scale != 1:
            last = last * self.logit_scale
        logits = self.lm_head(last)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits, state.results, taps


def _run_layer(
    layer: Any,
    hidden: torch.Tensor,
    positions: torch.Tensor | None,
    turns: tuple[torch.Tensor, torch.Tensor],
    state: LayerCaches,
    own: torch.Tensor | None = None,
) -> torch.Tensor:
    more: dict[str, Any] = {} if own is None else {"per_layer_input": own}
    if state.sources:
        more["shared_kv_states"] = state.shared
    state.layer = next(m.layer_idx for m in layer.modules() if hasattr(m, "layer_idx"))
    out = layer(
        hidden,
        attention_mask=None,
        position_ids=positions,
        past_key_values=None,
        use_cache=False,
        position_embeddings=turns,
        layer_caches=state,
        **more,
    )
    return cast(torch.Tensor, out)


def trace_segment(family: Family, first: int, last: int) -> Traced:
    """The graph of layers `first` to `last` - 1, with the package's input and output names."""
    module = SegmentModule(family, first, last).eval()
    dims = family.decoder.dims
    ends, kinds = last == dims.num_layers, family.decoder.kinds
    segment = graph_io.Segment(
        *(dims, first, last, module.deepstack, ends, kinds[first:last]),
        blocks=family.traits.reach.blocks is not None,
    )
    layers = segment.layers
    dtype = next(module.parameters()).dtype
    types = {"T": dtype, "int64": torch.int64, "float32": torch.float32}
    sizes = {BATCH: 2, NEW: 3, ACTIVE.name: 5, PARKED.name: 4, WEIGHTINGS: MOST_WEIGHTINGS}
    # How many weightings there are is open in the graph, and fixed while it is traced.
    open_sizes = {name: torch.export.Dim(name) for name in (BATCH, NEW)}
    for i in module.traced:
        rows = (ACTIVE.rows(i), PARKED.rows(i))
        open_sizes |= {name: torch.export.Dim(name) for name in rows}
    given = {value.name: value for value in segment.inputs(module.traced)}

    def meta(name: str) -> torch.Tensor:
        value = given[name]
        return torch.empty(value.sized(sizes), dtype=types[value.dtype], device="meta")

    def axes(name: str) -> dict[int, Any]:
        shape = enumerate(given[name].shape)
        return {axis: open_sizes[size] for axis, size in shape if size in open_sizes}

    def arguments(of: Callable[[str], Any]) -> dict[str, Any]:
        """What `forward` takes, by its own names: those of the graph's inputs, and three lists."""
        return {
            **{name: of(name) for name in (HIDDEN, POSITIONS, WEIGHTS)},
            "reach": [of(name) for name in segment.reach],
            "caches": [
                tuple(of(named(kind, i)) for kind in segment.kind(i).reads) for i in module.traced
            ],
            "deepstack": [of(named(DEEPSTACK, i)) for i in module.deepstack],
        }

    example, dynamic = arguments(meta), arguments(axes)
    taps = segment.taps()

    def names(which: Sequence[int]) -> tuple[list[str], list[str]]:
        outputs = (*segment.outputs(which), *taps)
        return [value.name for value in segment.inputs(which)], [value.name for value in outputs]

    config = cast(Any, family.decoder.text_model).config
    with (
        implementation(config, attention.IMPLEMENTATION),
        compacting.compact(family.decoder, module),
        states.stateful(module.layers),
    ):
        own = {id(layer): f".{i}" for i, layer in zip(layers, module.layers, strict=True)}
        model = _to_onnx(module, example, dynamic, *names(module.traced), own)
    for values, ordered in zip(
        (model.graph.inputs, model.graph.outputs), names(layers), strict=True
    ):
        found = {value.name: value for value in values}
        values[:] = [found[name] for name in ordered]
    shapes = {v.name: v.shape for v in (*segment.inputs(), *segment.outputs(), *taps)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(shapes[str(value.name)])
    heads = (dims.num_heads, dims.num_kv_heads)
    return Traced(model, _names(module, family.model), len(taps), heads)


def trace_encoder(family: Family, encoder: EncoderGraph) -> Traced:
    """The graph of an encoder, with the package's input and output names."""
    module = encoder.module.eval()
    dynamic = {name: dict(axes) for name, axes in encoder.dynamic.items()}
    model = _to_onnx(
        module, dict(encoder.example), dynamic, list(encoder.example), list(encoder.outputs)
    )
    return Traced(model, _names(module, family.model))


def _names(module: nn.Module, model: nn.Module) -> dict[str, str]:
    """Names of `module`'s tensors -> names of the same tensors in `model`."""
    full = {id(t): name for name, t in (*model.named_buffers(), *model.named_parameters())}
    own = (*module.named_buffers(), *module.named_parameters())
    return {name: full[id(tensor)] for name, tensor in own}


def _to_onnx(
    module: nn.Module,
    example: dict[str, Any],
    dynamic: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
    own: Mapping[int, str] | None = None,
) -> ir.Model:
    """The graph of `module`; `own` as `holes.fill` takes it."""
    table = {
        **compacting.translation(),
        **attention.translation(),
        **states.translation(),
        **experts.translation(),
        **frame_attention.translation(),
        **replicate.translation(),
    }
    with _quiet(), torch.no_grad(), replicate.tracing() as calls:
        program = torch.export.export(module, (), example, dynamic_shapes=dynamic, strict=False)
        lower_in_place(program)
        exported = torch.onnx.export(
            program,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            custom_translation_table=table,
            # The optimizer reads initializers, and those on the meta device hold nothing.
            optimize=False,
            verbose=False,
        )
    if exported is None:
        raise RuntimeError("torch.onnx.export returned no program")
    fill(exported.model, calls, module, own or {})
    return exported.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's chatter off stdout and stderr, which belong to our own results."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

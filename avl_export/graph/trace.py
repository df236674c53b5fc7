"""Trace a family's modules on the meta device into ONNX graphs without weights."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import nn

from avl_export.families import EncoderGraph, Family, frame_attention, replicate
from avl_export.graph import attention
from avl_export.graph import compact as compacting
from avl_export.graph.attention import LayerCaches
from avl_export.graph.holes import fill
from avl_plugins.schema import WEIGHTINGS

OPSET = 23
CACHE = ("k_active", "v_active", "active_len", "k_parked", "v_parked", "parked_len")
RESULTS = ("k_new", "v_new", "mass_active", "mass_parked", "mass_new")


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
        text: Any = family.text_model
        self.rotary_emb = text.rotary_emb
        self.layers = nn.ModuleList(text.layers[first:last])
        self.first = first
        firsts = replicate.firsts(list(self.layers))
        self.traced = tuple(first + index for index in sorted(set(firsts)))
        self.deepstack = deepstack_layers(family, first, last)
        is_last = last == family.traits.dims.num_layers
        self.norm = text.norm if is_last else None
        self.lm_head = family.lm_head if is_last else None

    def forward(
        self,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        row_weights: torch.Tensor,
        caches: list[tuple[torch.Tensor, ...]],
        deepstack: list[torch.Tensor],
    ) -> tuple[Any, ...]:
        """[B, S, C] -> hidden [B, S, C] or logits [B, 1, V], results a layer, tapped states.

        Caches are those of the `traced` layers, and so are the results.
        """
        added = dict(zip(self.deepstack, deepstack, strict=True))
        state = LayerCaches(row_weights, dict(zip(self.traced, caches, strict=True)))
        cos, sin = self.rotary_emb(hidden, position_ids)
        half = cos.shape[-1] // 2
        turns = (cos[..., :half], sin[..., :half])
        taps = []
        for number, layer in enumerate(self.layers, self.first):
            hidden = replicate.repeat(_run_layer, layer, hidden, turns, state)
            if number in added:
                hidden = hidden + added[number]
            taps.append(hidden)
        if self.norm is None or self.lm_head is None:
            return taps.pop(), state.results, taps
        return self.lm_head(self.norm(hidden[:, -1:])), state.results, taps


def _run_layer(
    layer: nn.Module,
    hidden: torch.Tensor,
    turns: tuple[torch.Tensor, torch.Tensor],
    state: LayerCaches,
) -> torch.Tensor:
    out = layer(
        hidden,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        use_cache=False,
        position_embeddings=turns,
        layer_caches=state,
    )
    return cast(torch.Tensor, out)


def trace_segment(family: Family, first: int, last: int) -> Traced:
    """The graph of layers `first` to `last` - 1, with the package's input and output names."""
    module = SegmentModule(family, first, last).eval()
    dims = family.traits.dims
    layers = range(first, last)
    dtype = next(module.parameters()).dtype
    batch, seq, active, parked = 2, 3, 5, 4

    def meta(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def cache() -> tuple[torch.Tensor, ...]:
        kv = (batch, dims.num_kv_heads)
        length = meta(batch, dtype=torch.int64)
        a = meta(*kv, active, dims.head_dim)
        p = meta(*kv, parked, dims.head_dim)
        return a, a.clone(), length, p, p.clone(), length.clone()

    example = {
        "hidden": meta(batch, seq, dims.hidden_size),
        "position_ids": meta(batch, seq, dtype=torch.int64),
        "row_weights": meta(batch, 2, seq, dtype=torch.float32),
        "caches": [cache() for _ in module.traced],
        "deepstack": [meta(batch, seq, dims.hidden_size) for _ in module.deepstack],
    }
    if dims.position_axes > 1:
        example["position_ids"] = meta(dims.position_axes, batch, seq, dtype=torch.int64)
    b, s = torch.export.Dim("batch"), torch.export.Dim("seq")
    dynamic: dict[str, Any] = {
        "hidden": {0: b, 1: s},
        "position_ids": {0: b, 1: s},
        "row_weights": {0: b, 2: s},
        "caches": [],
        "deepstack": [{0: b, 1: s} for _ in module.deepstack],
    }
    if dims.position_axes > 1:
        dynamic["position_ids"] = {1: b, 2: s}
    for i in module.traced:
        a = {0: b, 2: torch.export.Dim(f"active_{i}")}
        p = {0: b, 2: torch.export.Dim(f"parked_{i}")}
        dynamic["caches"].append((a, a, {0: b}, p, p, {0: b}))
    is_last = last == dims.num_layers
    tapped = list(layers) if is_last else list(layers)[:-1]

    def names(which: Sequence[int]) -> tuple[list[str], list[str]]:
        inputs = ["hidden", "position_ids", "row_weights"]
        inputs += [f"{name}.{i}" for i in which for name in CACHE]
        inputs += [f"deepstack.{i}" for i in module.deepstack]
        outputs = ["logits" if is_last else "hidden_out"]
        outputs += [f"{name}.{i}" for i in which for name in RESULTS]
        outputs += [f"layer_out.{i}" for i in tapped]
        return inputs, outputs

    with _implementation(family), compacting.compact(list(module.layers), module):
        own = {id(layer): f".{i}" for i, layer in zip(layers, module.layers, strict=True)}
        model = _to_onnx(module, example, dynamic, *names(module.traced), own)
    for values, ordered in zip(
        (model.graph.inputs, model.graph.outputs), names(layers), strict=True
    ):
        named = {value.name: value for value in values}
        values[:] = [named[name] for name in ordered]
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(_segment_shape(str(value.name), family))
    heads = (dims.num_heads, dims.num_kv_heads)
    return Traced(model, _names(module, family.model), len(tapped), heads)


def trace_encoder(family: Family, encoder: EncoderGraph) -> Traced:
    """The graph of an encoder, with the package's input and output names."""
    module = encoder.module.eval()
    dynamic = {name: dict(axes) for name, axes in encoder.dynamic.items()}
    model = _to_onnx(
        module, dict(encoder.example), dynamic, list(encoder.example), list(encoder.outputs)
    )
    return Traced(model, _names(module, family.model))


def _segment_shape(name: str, family: Family) -> list[int | str]:
    dims = family.traits.dims
    kind, _, i = name.partition(".")
    place = kind.rpartition("_")[2]
    rows: int | str = {"active": f"active_{i}", "parked": f"parked_{i}"}.get(place, "seq")
    if kind.startswith(("k_", "v_")):
        return ["batch", dims.num_kv_heads, rows, dims.head_dim]
    if kind.startswith("mass_"):
        return ["batch", dims.num_kv_heads, WEIGHTINGS, rows]
    axes: list[int | str] = [] if dims.position_axes == 1 else [dims.position_axes]
    shapes: dict[str, list[int | str]] = {
        "position_ids": [*axes, "batch", "seq"],
        "row_weights": ["batch", WEIGHTINGS, "seq"],
        "active_len": ["batch"],
        "parked_len": ["batch"],
        "logits": ["batch", 1, dims.vocab_size],
    }
    return shapes.get(kind, ["batch", "seq", dims.hidden_size])


@contextmanager
def _implementation(family: Family) -> Iterator[None]:
    """Let the decoder's layers call our attention function while the block runs."""
    config: Any = family.text_model.config
    before = config._attn_implementation
    config._attn_implementation = attention.IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before


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
        **frame_attention.translation(),
        **replicate.translation(),
    }
    with _quiet(), torch.no_grad(), replicate.tracing() as calls:
        program = torch.export.export(module, (), example, dynamic_shapes=dynamic, strict=False)
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

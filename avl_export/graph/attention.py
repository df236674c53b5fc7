"""The attention op as torch.export sees it, and its translation to an ONNX node."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from onnxscript.values import Opset
from transformers import AttentionInterface

from avl_plugins import onnx_schema
from avl_plugins.schema import (
    BLOCK_CACHE_ATTENTION,
    SPLIT_CACHE_ATTENTION,
    WINDOW_CACHE_ATTENTION,
    Op,
)

IMPLEMENTATION = "avl_split_cache"
ROWS = 6  # tensors of a layer's rows
_PYTHON = {"float": float, "int": int, "string": str}

_GIVEN = (
    "Tensor q, Tensor k_new, Tensor v_new, Tensor k_active, Tensor v_active, Tensor active_len, "
    "Tensor k_parked, Tensor v_parked, Tensor parked_len, Tensor row_weights"
)
_MADE = "-> (Tensor, Tensor, Tensor, Tensor)"
_WINDOW = "Tensor row_ends, Tensor row_positions, Tensor active_positions"
torch.library.define("avl::split_cache_attention", f"({_GIVEN}, float scale) {_MADE}")
torch.library.define(
    "avl::block_cache_attention", f"({_GIVEN}, Tensor row_ends, float scale) {_MADE}"
)
torch.library.define(
    "avl::window_cache_attention", f"({_GIVEN}, {_WINDOW}, float scale, int window) {_MADE}"
)


def _shapes(
    q: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    k_active: torch.Tensor,
    v_active: torch.Tensor,
    active_len: torch.Tensor,
    k_parked: torch.Tensor,
    v_parked: torch.Tensor,
    parked_len: torch.Tensor,
    row_weights: torch.Tensor,
    *_: object,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Only shapes: tracing on the meta device never runs the op."""
    lead = (q.shape[0], k_new.shape[1], row_weights.shape[1])
    active, parked, new = (
        row_weights.new_empty((*lead, rows.shape[2])) for rows in (k_active, k_parked, k_new)
    )
    return torch.empty_like(q), active, parked, new


@dataclass(slots=True)
class LayerCaches:
    """What one traced pass hands to the attention of each layer, and gets back.

    `caches` holds by layer (k_active, v_active, active_len, k_parked, v_parked, parked_len), and of
    layers with a window active_positions, or a layer's states; `reach` is none, row_ends, or that
    and row_positions; `results` collects (k_new, v_new, mass_active, mass_parked, mass_new), or a
    state each; `layer` is the one that runs. `blocks` says whether new rows see later ones.
    `sources` are the layers that read another's rows, with that one; transformers hands their new
    rows on in `shared`.
    """

    row_weights: torch.Tensor
    caches: Mapping[int, tuple[torch.Tensor, ...]]
    reach: tuple[torch.Tensor, ...] = ()
    results: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    layer: int = 0
    blocks: bool = False
    sources: Mapping[int, int] = field(default_factory=dict)
    shared: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def held(self) -> tuple[torch.Tensor, ...]:
        """What the layer that runs is given of what it, or another for it, keeps."""
        return self.caches[self.sources.get(self.layer, self.layer)]


def split_cache_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    layer_caches: LayerCaches,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """The attention function registered with transformers; query [B, H, S, D] -> [B, S, H, D].

    With no entry in AttentionMaskInterface transformers builds no mask for it.
    """
    held = layer_caches.held
    positions = held[ROWS:]
    is_owner, weights = layer_caches.layer not in layer_caches.sources, layer_caches.row_weights
    if not is_owner:  # rows are ranked, and by kernels moved, where they are held
        weights = weights[:, :0]
    given = (query, key, value, *held[:ROWS], weights)
    if positions:
        if sliding_window is None:
            raise RuntimeError("a layer with a window that its attention is not told of")
        out, *masses = torch.ops.avl.window_cache_attention(
            *given, *layer_caches.reach, *positions, float(scaling), sliding_window
        )
    elif layer_caches.blocks:
        out, *masses = torch.ops.avl.block_cache_attention(
            *given, layer_caches.reach[0], float(scaling)
        )
    else:
        out, *masses = torch.ops.avl.split_cache_attention(*given, float(scaling))
    if is_owner:
        layer_caches.results.append((key, value, *masses))
    return out.transpose(1, 2), None


def translation() -> dict[Any, Any]:
    """The custom translation table entry; registers the ONNX schemas."""
    onnx_schema.register()
    ops = torch.ops.avl
    return {
        ops.split_cache_attention.default: node_of(SPLIT_CACHE_ATTENTION),
        ops.block_cache_attention.default: node_of(BLOCK_CACHE_ATTENTION),
        ops.window_cache_attention.default: node_of(WINDOW_CACHE_ATTENTION),
    }


def node_of(op: Op) -> Callable[..., Any]:
    """A function that makes nodes of `op`, with the signature that torch's exporter looks for."""
    ops = Opset(op.domain, op.version)
    inputs = [value.name for value in op.inputs]
    attributes = [attribute.name for attribute in op.attributes]

    def node(*given: Any, **named: Any) -> Any:
        others = dict(zip(attributes, given[len(inputs) :], strict=False))
        return getattr(ops, op.name)(*given[: len(inputs)], **others, **named)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in (*inputs, *attributes)]
    node.__annotations__ = {one.name: _PYTHON[one.kind] for one in op.attributes}
    cast(Any, node).__signature__ = inspect.Signature(parameters)
    return node


for _name in ("split", "block", "window"):
    torch.library.register_fake(f"avl::{_name}_cache_attention", _shapes)
AttentionInterface.register(IMPLEMENTATION, split_cache_attention)

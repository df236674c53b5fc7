"""The attention op as torch.export sees it, and its translation to an ONNX node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from onnxscript.values import Opset
from transformers import AttentionInterface

from avl_plugins import onnx_schema
from avl_plugins.schema import SPLIT_CACHE_ATTENTION

IMPLEMENTATION = "avl_split_cache"

torch.library.define(
    "avl::split_cache_attention",
    "(Tensor q, Tensor k_new, Tensor v_new, Tensor k_active, Tensor v_active, Tensor active_len, "
    "Tensor k_parked, Tensor v_parked, Tensor parked_len, Tensor row_weights, float scale) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
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
    scale: float,
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

    `caches` holds by layer (k_active, v_active, active_len, k_parked, v_parked, parked_len);
    `results` collects (k_new, v_new, mass_active, mass_parked, mass_new).
    """

    row_weights: torch.Tensor
    caches: Mapping[int, tuple[torch.Tensor, ...]]
    results: list[tuple[torch.Tensor, ...]] = field(default_factory=list)


def split_cache_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    layer_caches: LayerCaches,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """The attention function registered with transformers; query [B, H, S, D] -> [B, S, H, D].

    With no entry in AttentionMaskInterface transformers builds no mask for it.
    """
    cache = layer_caches.caches[module.layer_idx]
    out, *masses = torch.ops.avl.split_cache_attention(
        query, key, value, *cache, layer_caches.row_weights, float(scaling)
    )
    layer_caches.results.append((key, value, *masses))
    return out.transpose(1, 2), None


def translation() -> dict[Any, Any]:
    """The custom translation table entry; registers the ONNX schemas."""
    onnx_schema.register()
    schema = SPLIT_CACHE_ATTENTION
    ops = Opset(schema.domain, schema.version)

    def node(
        q: Any,
        k_new: Any,
        v_new: Any,
        k_active: Any,
        v_active: Any,
        active_len: Any,
        k_parked: Any,
        v_parked: Any,
        parked_len: Any,
        row_weights: Any,
        scale: float,
    ) -> Any:
        return getattr(ops, schema.name)(
            q,
            k_new,
            v_new,
            k_active,
            v_active,
            active_len,
            k_parked,
            v_parked,
            parked_len,
            row_weights,
            scale=scale,
        )

    return {torch.ops.avl.split_cache_attention.default: node}


torch.library.register_fake("avl::split_cache_attention", _shapes)
AttentionInterface.register(IMPLEMENTATION, split_cache_attention)

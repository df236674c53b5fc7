"""Ops of layers with a state as torch.export sees them, in place of transformers' functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from transformers.activations import ACT2FN

from avl_export.families.decoders.states import CONVOLVE, RULE, replaced
from avl_export.graph.attention import LayerCaches, node_of
from avl_plugins.bodies.state_body import state_function
from avl_plugins.schema import (
    DOMAIN,
    GATED_DELTA_RULE,
    SHORT_CONVOLUTION,
    SHORT_CONVOLUTION_SILU,
    STATE_OPS,
)

_CONVOLUTIONS = {None: "short_convolution", "silu": "short_convolution_silu"}
for _name in _CONVOLUTIONS.values():
    torch.library.define(
        f"avl::{_name}", "(Tensor x, Tensor conv_state, Tensor weight) -> (Tensor, Tensor)"
    )
torch.library.define(
    "avl::gated_delta_rule",
    "(Tensor q, Tensor k, Tensor v, Tensor decay, Tensor beta, Tensor delta_state) "
    "-> (Tensor, Tensor)",
)


def _convolution_shapes(
    x: torch.Tensor, conv_state: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(conv_state)


def _rule_shapes(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    delta_state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(v), torch.empty_like(delta_state)


@contextmanager
def stateful(layers: nn.ModuleList) -> Iterator[None]:
    """Let layers keep states by ops of ours while the block runs."""
    with ExitStack() as stack:
        for kind in {type(layer): layer for layer in layers}.values():
            stack.enter_context(replaced(kind, {CONVOLVE: _convolve, RULE: _rule}))
        yield


def _convolve(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    layer_caches: LayerCaches,
    **_: object,
) -> torch.Tensor:
    """[B, C, S] and [C, K] -> [B, C, S], as transformers' causal_conv1d_fn."""
    rows, held = hidden_states.transpose(1, 2), layer_caches.held[0]
    inside = activation if bias is None and activation in _CONVOLUTIONS else None
    y, made = getattr(torch.ops.avl, _CONVOLUTIONS[inside])(rows, held, weight)
    layer_caches.results.append((made,))
    y = y if bias is None else y + bias
    found: torch.Tensor = y if activation == inside else ACT2FN[activation](y)
    return found.transpose(1, 2)


def _rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    *,
    layer_caches: LayerCaches,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """As transformers' torch_chunk_gated_delta_rule, [B, S, heads, size] each."""
    if not use_qk_l2norm_in_kernel:
        raise TypeError("a delta rule whose queries and keys have another norm")
    held = layer_caches.held[1]
    out, made = torch.ops.avl.gated_delta_rule(query, key, value, g, beta, held)
    layer_caches.results.append((made,))
    return out, None


def translation() -> dict[Any, Any]:
    """Entries for the custom translation table; `attention.translation` registers the schemas."""
    return {
        torch.ops.avl.short_convolution.default: node_of(SHORT_CONVOLUTION),
        torch.ops.avl.short_convolution_silu.default: node_of(SHORT_CONVOLUTION_SILU),
        torch.ops.avl.gated_delta_rule.default: node_of(GATED_DELTA_RULE),
    }


def attach_states(model: ir.Model) -> None:
    """Give a model the bodies of the ops of states that it has."""
    found: Mapping[str, ir.Node] = {
        node.op_type: node for node in model.graph if node.domain == DOMAIN
    }
    for op in STATE_OPS:
        node = found.get(op.name)
        if node is None:
            continue
        held = node.inputs[1]
        rows = held.shape[1] if held is not None and held.shape is not None else None
        kernel = rows + 1 if isinstance(rows, int) else 0  # of a convolution, whose state has it
        body = state_function(op, kernel, model.opset_imports[""])
        function = ir.serde.deserialize_function(body)
        model.functions[function.identifier()] = function


for _name in _CONVOLUTIONS.values():
    torch.library.register_fake(f"avl::{_name}", _convolution_shapes)
torch.library.register_fake("avl::gated_delta_rule", _rule_shapes)

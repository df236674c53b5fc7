"""A mixture of experts as one op, in place of what transformers computes with its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from avl_export.checkpoint.supported import FamilyError
from avl_runtime.package.dims import Experts

IMPLEMENTATION = "avl_sparse_experts"
ACTIVATION = "silu"
STACKS = ("gate_up_proj", "down_proj")
# What modules of experts say of themselves, and what it is of those that are exported.
_KNOWN = {
    "has_gate": True,
    "has_bias": False,
    "has_post_expert_norm": False,
    "is_transposed": False,
    "is_concatenated": True,
}

torch.library.define(
    "avl::sparse_experts",
    "(Tensor x, Tensor chosen, Tensor shares, Tensor gate_up, Tensor down, int gate_up_trans, "
    "int down_trans) -> Tensor",
)


def _shape(x: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(x)


def sparse_experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The function registered with transformers; rows [S, C] and [S, K] twice -> [S, C].

    Raises:
        TypeError: the op computes something else than these experts.
    """
    wrong = {name: getattr(module, name, None) for name in _KNOWN}
    wrong = {name: value for name, value in wrong.items() if value is not _KNOWN[name]}
    if type(module)._apply_gate is not _default_apply_gate:
        wrong["_apply_gate"] = type(module)._apply_gate
    if module.config.hidden_act != ACTIVATION:
        wrong["hidden_act"] = module.config.hidden_act
    others = sorted({name for name, _ in module.named_parameters()} - set(STACKS))
    if wrong or others:
        found = [*others, *(f"{name} of {value}" for name, value in wrong.items())]
        raise TypeError(f"experts with {found[0]}")
    weights = (getattr(module, name) for name in STACKS)
    y = torch.ops.avl.sparse_experts(hidden_states, top_k_index, top_k_weights, *weights, 1, 1)
    return cast(torch.Tensor, y)


def stacks(layer: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Weights of a layer's experts, if it has some: [E, 2I, C] and [E, C, I]."""
    return [
        (module.get_parameter(STACKS[0]), module.get_parameter(STACKS[1]))
        for module in layer.modules()
        if all(name in module._parameters for name in STACKS)
    ]


def observe_experts(layers: Sequence[nn.Module], text: Any, where: str) -> Experts | None:
    """Sizes of the mixtures of experts that some layers have; None where there are none.

    Raises:
        FamilyError: they differ.
    """
    found: dict[int, tuple[int, int]] = {}
    for number, layer in enumerate(layers):
        for _, down in stacks(layer):
            count, _, size = down.shape
            found[number] = (count, size)
    if not found:
        return None
    (count, size), *others = sorted(set(found.values()))
    if others:
        raise FamilyError(
            f"{where}: expected experts of one number and size in all layers, found "
            f"{count} of {size} and {others[0][0]} of {others[0][1]}; this version of avl cannot "
            "export it"
        )
    return Experts(tuple(found), count, text.num_experts_per_tok, size)


@contextmanager
def together(config: Any) -> Iterator[None]:
    """Let all experts of a layer be one op while the block runs."""
    before = config._experts_implementation
    config._experts_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._experts_implementation = before


torch.library.register_fake("avl::sparse_experts", _shape)
ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, sparse_experts)

"""Layers that keep a state: which functions of transformers keep it, and how large it is.

Their layers project, gate and norm around two functions, a causal convolution of each channel and
the gated delta rule, which modules of transformers call by the same names. These are replaced, and
never traced: the rule's loops would become a thousand nodes a layer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from avl_export.checkpoint.supported import FamilyError
from avl_export.families.decoders.observe import attempt, refused, run_layer
from avl_plugins import reference
from avl_plugins.graph_io import GATED_DELTA, LayerKind
from avl_runtime.package.dims import States

CONVOLVE, RULE = "causal_conv1d_fn", "torch_chunk_gated_delta_rule"
CLOSE = 1e-4

Replacements = Mapping[str, Callable[..., Any]]


@dataclass(slots=True)
class _Calls:
    """Shapes of what the two functions were given while a layer ran."""

    weights: list[tuple[int, ...]] = field(default_factory=list)
    rules: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def convolve(self, x: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.weights.append(tuple(weight.shape))
        return torch.empty_like(x)

    def rule(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor, None]:
        self.rules.append((tuple(key.shape), tuple(value.shape)))
        return torch.empty_like(value), None


@contextmanager
def replaced(layer: Any, replacements: Replacements) -> Iterator[None]:
    """Let a layer of transformers call other functions by these names while the block runs."""
    module: Any = sys.modules[type(layer).__module__]
    before = {name: getattr(module, name) for name in replacements if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, replacements[name])
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


def observe_state(text_model: Any, number: int, layer: Any, kind: LayerKind, where: str) -> States:
    """Run one layer on the meta device; returns the sizes of the states that it keeps.

    Raises:
        FamilyError: it keeps them by other functions, or attends to tokens as well.
    """
    calls = _Calls()
    with replaced(layer, {CONVOLVE: calls.convolve, RULE: calls.rule}):
        attended = run_layer(text_model, number, layer, where)
    rules = int(kind == GATED_DELTA)
    if attended or len(calls.weights) != 1 or len(calls.rules) != rules:
        found = f"{len(calls.weights)} convolutions, {len(calls.rules)} delta rules"
        raise refused(where, number, layer, found + " and attention" * bool(attended))
    if not _is_known(sys.modules[type(layer).__module__], rules=bool(rules)):
        raise refused(where, number, layer, "another convolution or delta rule")
    channels, kernel = calls.weights[0]
    if not rules:
        return States((), channels, kernel)
    (_, _, _, key_size), (_, _, heads, value_size) = calls.rules[0]
    return States((), channels, kernel, heads, key_size, value_size)


def shared_sizes(sizes: list[States], layers: tuple[int, ...], where: str) -> States | None:
    """The sizes that all `layers` with a state have; None where there are no such layers.

    Raises:
        FamilyError: they differ.
    """
    if len(set(sizes)) > 1:
        raise FamilyError(
            f"{where}: expected states of one size in all layers that keep one, found {sizes[0]} "
            f"and {next(one for one in sizes if one != sizes[0])}; this version of avl cannot "
            "export it"
        )
    return replace(sizes[0], layers=layers) if sizes else None


def _is_known(module: Any, *, rules: bool) -> bool:
    """Whether transformers' functions compute what our ops do, tried on random numbers."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, weight = drawn(1, 5, 3), drawn(3, 4)
    wanted, _ = reference.short_convolution(x.numpy(), torch.zeros(1, 3, 3).numpy(), weight.numpy())
    found = attempt(lambda: getattr(module, CONVOLVE)(x.transpose(1, 2), weight))
    if not _close(found, torch.from_numpy(wanted).transpose(1, 2)):
        return False
    if not rules:
        return True
    q, k, v = drawn(1, 5, 2, 6), drawn(1, 5, 2, 6), drawn(1, 5, 4, 3)
    decay, beta, state = -drawn(1, 5, 4).abs(), drawn(1, 5, 4).sigmoid(), torch.zeros(1, 4, 6, 3)
    given = [one.numpy() for one in (q, k, v, decay, beta, state)]
    expected, _ = reference.gated_delta_rule(*given)
    ruled = attempt(
        lambda: getattr(module, RULE)(q, k, v, g=decay, beta=beta, use_qk_l2norm_in_kernel=True)
    )
    return isinstance(ruled, tuple) and _close(ruled[0], torch.from_numpy(expected))


def _close(one: Any, other: torch.Tensor) -> bool:
    same = isinstance(one, torch.Tensor) and one.shape == other.shape
    return same and torch.allclose(one, other, atol=CLOSE)

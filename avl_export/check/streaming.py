"""transformers' modules with their weights in memory only while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

Load = Callable[[str, tuple[int, ...]], torch.Tensor]  # reads a parameter by its name


@contextmanager
def streamed(model: nn.Module, load: Load) -> Iterator[None]:
    """While the block runs, modules of `model` fetch their parameters and drop them again."""
    tokens = cast(Any, model).get_input_embeddings()
    with ExitStack() as stack:
        stack.enter_context(_on_cpu())
        # Gemma 4 looks at a row of it beforehand, and does nothing with that: zeros take no memory.
        before, nothing = tokens.weight, torch.zeros(()).expand(tokens.weight.shape)
        tokens.weight = nn.Parameter(nothing, requires_grad=False)
        stack.callback(setattr, tokens, "weight", before)
        for prefix, module in model.named_modules(remove_duplicate=False):
            own = [(module, prefix)]
            # Some read a table of positions, or a convolution's weight, without calling its module.
            for name, child in module.named_children():
                if type(child) in (nn.Embedding, nn.Conv1d) and child is not tokens:
                    own.append((child, f"{prefix}.{name}"))
            held = [
                (owner, name, parameter, f"{path}.{name}".lstrip("."))
                for owner, path in own
                for name, parameter in owner._parameters.items()
                if parameter is not None
            ]
            if held:
                fetch, drop = _hooks(held, load)
                stack.callback(module.register_forward_pre_hook(fetch).remove)
                stack.callback(module.register_forward_hook(drop, always_call=True).remove)
        yield


@contextmanager
def _on_cpu() -> Iterator[None]:
    """While the block runs, models say that they are on the CPU, as their parameters are in turn.

    Some move what they are given to where they say they are.
    """
    models: Any = PreTrainedModel
    before = models.device
    models.device = property(lambda _: torch.device("cpu"))
    try:
        yield
    finally:
        models.device = before


def _hooks(
    held: Sequence[tuple[nn.Module, str, nn.Parameter, str]], load: Load
) -> tuple[Callable[..., None], Callable[..., None]]:
    """What fetches parameters, each with its owner, its name there and its full name."""

    def fetch(*_: Any) -> None:
        for owner, name, parameter, full in held:
            value = load(full, tuple(parameter.shape))
            owner._parameters[name] = nn.Parameter(value, requires_grad=False)

    def drop(*_: Any) -> None:
        for owner, name, parameter, _full in held:
            owner._parameters[name] = parameter

    return fetch, drop

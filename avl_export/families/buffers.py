"""Buffers of transformers' models: those that a checkpoint stores, and values of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from avl_export.families.decoders.rope import Turns


def keep_stored(model: nn.Module) -> None:
    """Make parameters of the buffers below `model` that checkpoints store: weights like others."""
    stored = model.state_dict()
    for name, module in model.named_modules():
        for key, value in list(module._buffers.items()):
            if value is not None and f"{name}.{key}".lstrip(".") in stored:
                del module._buffers[key]
                module.register_parameter(key, nn.Parameter(value, requires_grad=False))


def initial_buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, torch.Tensor]]:
    """The value of each buffer below `model`, on the CPU, as transformers initialises it.

    Yields:
        the module that has the buffer, its name there and in `model`, and the value.
    """
    owners: dict[str, Any] = {}
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0]
        owners[name] = module if isinstance(module, PreTrainedModel) else owners[parent]
        before = {key: value for key, value in module._buffers.items() if value is not None}
        if not before or isinstance(module, Turns):
            continue
        values = {key: torch.zeros_like(value, device="cpu") for key, value in before.items()}
        module._buffers.update(values)
        try:
            owners[name]._init_weights(module)
            values = {key: module._buffers[key] for key in before}
        finally:
            module._buffers.update(before)
        for key, value in values.items():
            yield module, key, f"{name}.{key}", value

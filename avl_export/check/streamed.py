"""transformers' own model with its weights in memory only while the module that owns them runs.

A model of any size runs in fp32 in little more memory than its largest matrix takes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from avl_export.checkpoint.adapters.adapter import Adapter
from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.source import Source
from avl_export.checkpoint.weight_map import map_weights
from avl_export.families import Family
from avl_export.quantize.reading import read_weight
from avl_export.quantize.store import Store

Load = Callable[[str, tuple[int, ...]], torch.Tensor]


def empty_model(family: Family) -> nn.Module:
    """transformers' model of `family` in fp32 with eager attention and no weights.

    Parameters are on the meta device; buffers that no checkpoint stores have their values, on the
    CPU, as transformers' own initialisation gives them.
    """
    traced = cast(Any, family.model)
    config = copy.deepcopy(traced.config)
    with torch.device("meta"):
        model: Any = type(traced)._from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
    _fill_buffers(model, model)
    return cast(nn.Module, model.eval())


def _fill_buffers(module: nn.Module, model: Any) -> None:
    """Initialise buffers below `module`, each by the innermost transformers model it is in."""
    model = module if isinstance(module, PreTrainedModel) else model
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = torch.zeros_like(buffer, device="cpu")
    if module._buffers:
        model._init_weights(module)
    for child in module.children():
        _fill_buffers(child, model)


def checkpoint_loader(
    checkpoint: Checkpoint, model: nn.Module, adapter: Adapter | None = None
) -> Load:
    """Reads a parameter of `model` from `checkpoint`, as fp32, changed as `adapter` says."""
    weights = map_weights(checkpoint, model, {name: name for name in checkpoint.shards})

    def load(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        placed = weights.place(name, shape)
        if adapter is not None and name in adapter.changes:
            stored = Source(placed.key, checkpoint.shards[placed.location], placed.record)
            return torch.from_numpy(adapter.source(name, stored).read_floats(0, shape[0]))
        with safe_open(checkpoint.shards[placed.location], "pt") as file:
            return cast(torch.Tensor, file.get_tensor(placed.key).float())

    return load


def quantized_loader(store: Store, folder: Path, family: Family, plain: Load) -> Load:
    """Reads what the codes in `folder` stand for, and with `plain` what is not quantized."""
    tied = dict(getattr(family.model, "all_tied_weights_keys", None) or {})

    def load(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name == store.embedding:
            place = store.rows  # the codes under its name are those of the output matrix
        else:
            place = store.linears.get(name) or store.linears.get(tied.get(name, name))
        if place is None:
            return plain(name, shape)
        return torch.from_numpy(read_weight(folder, place))

    return load


@contextmanager
def streamed(model: nn.Module, load: Load) -> Iterator[None]:
    """While the block runs, modules of `model` fetch their parameters and drop them again."""
    hooks = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        own = {name: p for name, p in module._parameters.items() if p is not None}
        if own:
            fetch, drop = _hooks(f"{prefix}." if prefix else "", own, load)
            hooks.append(module.register_forward_pre_hook(fetch))
            hooks.append(module.register_forward_hook(drop, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(
    prefix: str, own: Mapping[str, nn.Parameter], load: Load
) -> tuple[Callable[..., None], Callable[..., None]]:
    def fetch(module: nn.Module, _: Any) -> None:
        for name, parameter in own.items():
            value = load(prefix + name, tuple(parameter.shape))
            module._parameters[name] = nn.Parameter(value, requires_grad=False)

    def drop(module: nn.Module, *_: Any) -> None:
        module._parameters.update(own)

    return fetch, drop

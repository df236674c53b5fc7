"""What transformers' own code does with a decoder's layers, and what they do with attention.

It is observed instead of being listed by kind of decoder: layers are replaced by stand-ins while
the decoder's forward pass runs, and attention by one while a layer's does, without weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AttentionInterface

from avl_export.checkpoint.supported import FamilyError
from avl_export.families.decoders.experts import together
from avl_export.families.decoders.layer_inputs import NORM, PROJECTION
from avl_export.families.decoders.stand_ins import Layer, Model, Nothing, Rotary
from avl_plugins.errors import quoted

Result = TypeVar("Result")

IMPLEMENTATION = "avl_observed"
ROWS = 3
CLOSE = 1e-5
# Keywords of an attention function that change nothing: all rows are shown, and are in order. What
# a window leaves out is none of a package's context, which ends with it.
HARMLESS = ("dropout", "is_causal", "position_ids", "sliding_window", "use_cache", "observed")


@dataclass(slots=True)
class Attended:
    """One call of an attention function, with the keys and keywords that it was given."""

    module: Any
    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    keys: torch.Tensor
    keywords: Mapping[str, Any]


@dataclass(slots=True)
class Observed:
    """The calls of attention functions while layers ran."""

    calls: list[Attended] = field(default_factory=list)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    observed: Observed | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    if observed is None:
        raise TypeError("attention is not handed what the layer is given")
    shapes = (tuple(query.shape), tuple(key.shape), tuple(value.shape))
    observed.calls.append(Attended(module, *shapes, key, keywords))
    return torch.empty_like(query).transpose(1, 2), None


def observe_layer(
    text_model: Any,
    number: int,
    layer: Any,
    where: str,
    handed: dict[str, Any] | None = None,
    both_ways: bool = False,
) -> Attended:
    """Run one layer on the meta device; returns its call of attention.

    Args:
        handed: keys and values that earlier layers handed on, where some do.
        both_ways: whether it may say that it attends to later tokens.

    Raises:
        FamilyError: it is none that a graph here computes: names the layer and why.
    """
    calls = run_layer(text_model, number, layer, where, handed)
    if len(calls) != 1:
        raise refused(where, number, layer, f"{len(calls)} calls of attention")
    (call,) = calls
    _check(call, where, number, layer, both_ways)
    return call


def run_layer(
    text_model: Any, number: int, layer: Any, where: str, handed: dict[str, Any] | None = None
) -> list[Attended]:
    """Run one layer on the meta device; returns its calls of attention.

    Raises:
        FamilyError: it fails, or puts out more than states.
    """
    config = text_model.config
    observed = Observed()
    hidden = torch.empty(1, ROWS, config.hidden_size, device="meta", dtype=_dtype(layer))
    width = _head_dim(config, layer)
    turns = tuple(torch.empty(1, ROWS, width, device="meta", dtype=hidden.dtype) for _ in "cs")
    more: dict[str, Any] = {}
    if size := getattr(config, "hidden_size_per_layer_input", None):
        more["per_layer_input"] = torch.empty(1, ROWS, size, device="meta", dtype=hidden.dtype)
    if getattr(config, "num_kv_shared_layers", None):
        more["shared_kv_states"] = {} if handed is None else handed
    try:
        with implementation(config, IMPLEMENTATION), torch.no_grad():
            out = layer(
                hidden,
                attention_mask=None,
                position_ids=torch.empty(1, ROWS, dtype=torch.int64, device="meta"),
                past_key_values=None,
                use_cache=False,
                position_embeddings=turns,
                observed=observed,
                **more,
            )
    except Exception as error:
        line = " ".join(str(error).split())[:120].rstrip(".")
        raise refused(where, number, layer, f"one that fails: {line}") from None
    if not isinstance(out, torch.Tensor) or out.shape != hidden.shape:
        raise refused(where, number, layer, "one that puts out more than states")
    return observed.calls


def _check(call: Attended, where: str, number: int, layer: Any, both_ways: bool) -> None:
    """Refuse attention with more than queries, keys, values and a scale."""
    others = {
        name: value
        for name, value in call.keywords.items()
        if name not in (*HARMLESS, "scaling") and value is not None and value is not False
    }
    if others:
        name, value = next(iter(others.items()))
        shown = "" if isinstance(value, torch.Tensor) else f" of {quoted(value, 40)}"
        raise refused(where, number, layer, f"attention with {name}{shown}")
    if getattr(call.module, "is_causal", True) is False and not both_ways:
        raise refused(where, number, layer, "attention to later tokens too (is_causal False)")
    if call.key != call.value or call.query[-1] != call.key[-1]:
        sizes = f"queries, keys and values of {call.query[-1]}, {call.key[-1]}, {call.value[-1]}"
        raise refused(where, number, layer, sizes)


def observe_loop(text_model: Any, norm: str, axes: int, where: str) -> float:
    """What a decoder multiplies embeddings with before its first layer.

    Args:
        norm: the name of its last norm.

    Raises:
        FamilyError: it does something else beside running its layers one by one.
    """
    layers, width = len(text_model.layers), text_model.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    embeds, added = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((1, ROWS, width), (layers, width))
    )
    stubs = nn.ModuleList(Layer(*pair) for pair in zip(text_model.layers, added, strict=True))
    parts = {"layers": stubs, norm: nn.Identity(), "rotary_emb": Rotary()}
    shape = (1, ROWS) if axes == 1 else (axes, 1, ROWS)
    more: dict[str, Any] = {}
    if size := getattr(text_model.config, "hidden_size_per_layer_input", None):
        # The tests of families compare what it makes of them.
        parts |= {PROJECTION: Nothing(layers * size), NORM: nn.Identity()}
        more["per_layer_inputs"] = torch.zeros(1, ROWS, layers, size)
    with _replaced(text_model, parts), implementation(text_model.config, IMPLEMENTATION):
        # Modules that are there beside the layers have no weights.
        scale = attempt(
            lambda: _ratio(
                text_model(
                    inputs_embeds=embeds,
                    position_ids=torch.zeros(shape, dtype=torch.int64),
                    use_cache=False,
                    **more,
                ).last_hidden_state
                - added.sum(0),
                embeds,
            )
        )
    if scale is None:
        raise FamilyError(
            f"{where}: expected a decoder that does no more than run layers one by one, found "
            f"{type(text_model).__name__}, which does more; this version of avl cannot export it"
        )
    return scale


def observe_embedding(text_model: Any, table: Any, where: str) -> float:
    """What a table of a decoder multiplies the rows of tokens with, rounded as it computes.

    Raises:
        FamilyError: it does something else with them.
    """
    like = copy.copy(table)
    like._parameters = {"weight": nn.Parameter(torch.ones(1, ROWS, dtype=_dtype(table)))}
    like._buffers = {
        name: torch.zeros_like(value, device="cpu") for name, value in table._buffers.items()
    }
    like.padding_idx = None
    with torch.no_grad():
        if like._buffers:
            text_model._init_weights(like)
        like.weight.fill_(1)
        rows = attempt(partial(like, torch.zeros(1, 1, dtype=torch.int64)))
    ones = torch.ones(1, 1, ROWS, dtype=torch.float64)
    scale = None if rows is None else _ratio(rows.double(), ones)
    if scale is None:
        raise FamilyError(
            f"{where}: expected embeddings that are rows of a table, or those times a number, "
            f"found {type(table).__name__}; this version of avl cannot export it"
        )
    return scale


def observe_head(model: Any, cap: float | None, where: str) -> tuple[float, float | None]:
    """What a model multiplies the output matrix's product with, to give logits, and their softcap.

    Args:
        cap: that the configuration names: c tanh(x / c), if the model does so.

    Raises:
        FamilyError: it does something else with it.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, ROWS, 8, generator=generator, dtype=torch.float64)
    parts = {"model": Model(hidden), "lm_head": nn.Identity()}
    with _replaced(model, parts):
        logits = attempt(lambda: model(inputs_embeds=hidden, use_cache=False).logits)
    scale = None if logits is None else _ratio(logits, hidden)
    if scale is None and logits is not None and cap:
        capped = cap * torch.tanh(hidden / cap)
        if torch.allclose(logits, capped, atol=CLOSE, rtol=CLOSE):
            return 1.0, float(cap)
    if scale is None:
        raise FamilyError(
            f"{where}: expected logits that are the product of lm_head, or that times a number, "
            f"found others of {type(model).__name__}; this version of avl cannot export it"
        )
    return scale, None


def attempt(call: Callable[[], Result]) -> Result | None:
    """What transformers' code gives that is run otherwise than it is meant; None if it fails."""
    try:
        return call()
    except Exception:  # of any kind: it is written for other inputs
        return None


@contextmanager
def implementation(config: Any, name: str) -> Iterator[None]:
    """Let layers call another attention function, and experts be one op, while the block runs."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        with together(config):
            yield
    finally:
        config._attn_implementation = before


@contextmanager
def _replaced(module: nn.Module, parts: Mapping[str, nn.Module]) -> Iterator[None]:
    before = {name: module._modules[name] for name in parts}
    module._modules.update(parts)
    try:
        with torch.no_grad():
            yield
    finally:
        module._modules.update(before)


def _ratio(found: torch.Tensor, given: torch.Tensor) -> float | None:
    """The number that `found` is `given` times, to 12 digits; None if it is no such thing."""
    if found.shape != given.shape:
        return None
    ratio = float(f"{float((found * given).sum() / (given * given).sum()):.12g}")
    return ratio if torch.allclose(found, ratio * given, atol=CLOSE, rtol=CLOSE) else None


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _head_dim(config: Any, layer: Any) -> int:
    """Of the layer, where its attention says it: not all layers of a model have the same."""
    own = {size for part in layer.modules() if type(size := getattr(part, "head_dim", None)) is int}
    if len(own) == 1:
        return own.pop()
    found: int = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return found


def refused(where: str, number: int, layer: Any, found: str) -> FamilyError:
    """What is raised of a layer that no graph here computes."""
    return FamilyError(
        f"{where}: expected layers of attention to all tokens before, found {found} in layer "
        f"{number} ({type(layer).__name__}); this version of avl cannot export it"
    )


AttentionInterface.register(IMPLEMENTATION, _attention)

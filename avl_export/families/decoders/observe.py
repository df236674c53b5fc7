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
    """One call of an attention function, with the keywords that it was given."""

    module: Any
    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
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
    observed.calls.append(Attended(module, *shapes, keywords))
    return torch.empty_like(query).transpose(1, 2), None


def observe_layer(text_model: Any, number: int, layer: Any, where: str) -> Attended:
    """Run one layer on the meta device; returns its call of attention.

    Raises:
        FamilyError: it is none that a graph here computes: names the layer and why.
    """
    calls = run_layer(text_model, number, layer, where)
    if len(calls) != 1:
        raise refused(where, number, layer, f"{len(calls)} calls of attention")
    (call,) = calls
    _check(call, where, number, layer)
    return call


def run_layer(text_model: Any, number: int, layer: Any, where: str) -> list[Attended]:
    """Run one layer on the meta device; returns its calls of attention.

    Raises:
        FamilyError: it fails, or puts out more than states.
    """
    config = text_model.config
    observed = Observed()
    hidden = torch.empty(1, ROWS, config.hidden_size, device="meta", dtype=_dtype(layer))
    width = _head_dim(config)
    turns = tuple(torch.empty(1, ROWS, width, device="meta", dtype=hidden.dtype) for _ in "cs")
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
            )
    except Exception as error:
        line = " ".join(str(error).split())[:120].rstrip(".")
        raise refused(where, number, layer, f"one that fails: {line}") from None
    if not isinstance(out, torch.Tensor) or out.shape != hidden.shape:
        raise refused(where, number, layer, "one that puts out more than states")
    return observed.calls


def _check(call: Attended, where: str, number: int, layer: Any) -> None:
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
    if getattr(call.module, "is_causal", True) is False:
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
    stubs = nn.ModuleList(_Layer(*pair) for pair in zip(text_model.layers, added, strict=True))
    parts = {"layers": stubs, norm: nn.Identity(), "rotary_emb": _Rotary()}
    shape = (1, ROWS) if axes == 1 else (axes, 1, ROWS)
    with _replaced(text_model, parts), implementation(text_model.config, IMPLEMENTATION):
        # Modules that are there beside the layers have no weights.
        scale = attempt(
            lambda: _ratio(
                text_model(
                    inputs_embeds=embeds,
                    position_ids=torch.zeros(shape, dtype=torch.int64),
                    use_cache=False,
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


def observe_embedding(text_model: Any, where: str) -> float:
    """What a decoder's table multiplies the rows of tokens with, rounded as it computes.

    Raises:
        FamilyError: it does something else with them.
    """
    table = text_model.embed_tokens
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


def observe_head(model: Any, where: str) -> float:
    """What a model multiplies the output matrix's product with, to give logits.

    Raises:
        FamilyError: it does something else with it.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, ROWS, 8, generator=generator, dtype=torch.float64)
    parts = {"model": _Model(hidden), "lm_head": nn.Identity()}
    with _replaced(model, parts):
        scale = attempt(lambda: _ratio(model(inputs_embeds=hidden, use_cache=False).logits, hidden))
    if scale is None:
        raise FamilyError(
            f"{where}: expected logits that are the product of lm_head, or that times a number, "
            f"found others of {type(model).__name__}; this version of avl cannot export it"
        )
    return scale


def attempt(call: Callable[[], Result]) -> Result | None:
    """What transformers' code gives that is run otherwise than it is meant; None if it fails."""
    try:
        return call()
    except Exception:  # of any kind: it is written for other inputs
        return None


@contextmanager
def implementation(config: Any, name: str) -> Iterator[None]:
    """Let layers call another attention function while the block runs."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
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


class _Layer(nn.Module):
    """Adds something of its own to the states; for all else it is the layer."""

    def __init__(self, layer: nn.Module, added: torch.Tensor) -> None:
        super().__init__()
        self._others = (layer,)  # no module of this one
        self.added = added

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._others[0], name)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states + self.added


class _Rotary(nn.Module):
    def forward(self, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1), torch.zeros(1)


class _Model(nn.Module):
    """Puts out `hidden`, and has nothing else to say."""

    rope_deltas = None

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Any:
        return _Output(self.hidden)


class _Output:
    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


def _ratio(found: torch.Tensor, given: torch.Tensor) -> float | None:
    """The number that `found` is `given` times, to 12 digits; None if it is no such thing."""
    if found.shape != given.shape:
        return None
    ratio = float(f"{float((found * given).sum() / (given * given).sum()):.12g}")
    return ratio if torch.allclose(found, ratio * given, atol=CLOSE, rtol=CLOSE) else None


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _head_dim(config: Any) -> int:
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

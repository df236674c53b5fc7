"""What any family's decoder reads, taken from a call of the family's own forward pass.

This file must not import avl_runtime or avl_plugins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

VISUAL = ("image_token_id", "video_token_id")


@dataclass(frozen=True, slots=True)
class Shown:
    """What a decoder reads of a turn of N tokens, V of them visual.

    Attributes:
        embeds: [N, C], features at visual tokens.
        visual: bool [N].
        positions: int64 [axes, N], counted from the turn's start.
        deepstack: [K, V, C], added to what K layers put out; K is 0 in most families.
        before: the layers that they are added before instead, where the model says so.
        beside: [N, L, size], what is stored for layers of each token; size is 0 in most families.
        counts: int64 [N], how many tokens each row stands for; None: one each.
    """

    embeds: Tensor
    visual: Tensor
    positions: Tensor
    deepstack: Tensor
    before: tuple[int, ...] = ()
    beside: Tensor | None = None
    counts: Tensor | None = None


class _ReadError(Exception):
    """Ends a forward pass once its decoder has been called."""


def read(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Shown:
    """What the decoder is called with when `model` reads `inputs`, a batch of one."""
    call: dict[str, Any] = {}

    def take(_module: torch.nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call.update(kwargs)
        raise _ReadError

    hook = decoder_of(model).register_forward_pre_hook(take, with_kwargs=True)
    if hasattr(model.model, "rope_deltas"):
        # Qwen's model remembers the last prompt, and would go on from its positions.
        model.model.rope_deltas = None
    try:
        with torch.no_grad(), contextlib.suppress(_ReadError):
            model(**inputs, use_cache=False)
    finally:
        hook.remove()
    ids = inputs["input_ids"][0]
    visual = torch.isin(ids, torch.tensor(visual_tokens(model.config)))
    embeds = call["inputs_embeds"][0].detach().clone()
    positions = call.get("position_ids")
    if positions is None:
        positions = torch.arange(len(ids))[None]
    by_layer = call.get("deepstack_features") or {}
    deepstack = call.get("deepstack_visual_embeds", list(by_layer.values()) or None)
    if deepstack is None:
        deepstack = embeds.new_zeros(0, int(visual.sum()), embeds.shape[-1])
    # Four axes are the token's number, which only masks need, and M-RoPE's three.
    axes = positions.reshape(-1, len(ids))[-3:]
    axes = axes - axes.min()  # PaliGemma counts from 1
    if len(deepstack):
        deepstack = torch.stack(list(deepstack))
    beside = call.get("per_layer_inputs")
    beside = None if beside is None else beside[0].detach().clone()
    return Shown(embeds, visual, axes, deepstack, tuple(by_layer), beside)


def cut(shown: Shown, keep: Tensor) -> Shown:
    """A turn with those of its tokens alone that `keep` [N] marks, where they were."""
    return Shown(
        shown.embeds[keep],
        shown.visual[keep],
        shown.positions[:, keep],
        shown.deepstack[:, keep[shown.visual]],
        shown.before,
        None if shown.beside is None else shown.beside[keep],
        None if shown.counts is None else shown.counts[keep],
    )


def closed_up(shown: Shown, keep: Tensor, counts: Sequence[int]) -> Tensor:
    """Positions [axes, N] as if only the tokens that `keep` [N] marks had ever been there.

    Where text counts up by one, and a picture's positions by one on each axis.

    Args:
        counts: tokens of each picture.
    """
    found, start = shown.positions.clone(), 0
    owner = [number for number, count in enumerate(counts) for _ in range(count)]
    visual = iter(owner)
    of = [next(visual) if one else -1 for one in shown.visual.tolist()]
    token = 0
    while token < len(of):
        end = token + 1
        while of[token] >= 0 and end < len(of) and of[end] == of[token]:
            end += 1
        left = [i for i in range(token, end) if keep[i]]
        largest = -1
        for axis in found:
            values = sorted({int(axis[i]) for i in left})
            for i in left:
                axis[i] = start + values.index(int(axis[i]))
            largest = max(largest, len(values) - 1)
        start += largest + 1
        token = end
    return found


def decoder_of(model: Any) -> Any:
    """The model's decoder, by either of the names that transformers gives it."""
    inner = model.model
    return inner.language_model if hasattr(inner, "language_model") else inner.text_model


def visual_tokens(config: Any) -> list[int]:
    """Ids of the tokens at whose places features go."""
    found = [getattr(config, name, None) for name in VISUAL]
    return [token for token in found if token is not None]

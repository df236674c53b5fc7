"""The decoder of any family: which ones fit, and what graphs and the cache must know of one.

Everything else (norms of queries and keys, gates, multipliers, an unusual MLP) comes along when
transformers' layers are traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from avl_export.checkpoint.supported import FamilyError
from avl_export.families.decoders.observe import (
    observe_embedding,
    observe_head,
    observe_layer,
    observe_loop,
)
from avl_export.families.decoders.rope import Rope, Turns, check_rope, observe_ropes
from avl_export.families.decoders.states import observe_state, shared_sizes
from avl_export.families.replicate import firsts
from avl_plugins.errors import quoted
from avl_plugins.graph_io import FULL, GATED_DELTA, LAYER_KINDS, SHORT_CONVOLUTION, SLIDING
from avl_runtime.package.manifest import Dims

FOREVER = 1 << 62
WINDOWED = "sliding_attention"
# Kinds of layers, by transformers' names. Within its window, windowed attention is full attention,
# and `Decoder.dims` lets no package go further whose family does not say that windows slide.
KINDS = {
    "full_attention": FULL.name,
    WINDOWED: FULL.name,
    "linear_attention": GATED_DELTA.name,
    "conv": SHORT_CONVOLUTION.name,
}
SLIDES = KINDS | {WINDOWED: SLIDING.name}
NAMES = ("model.language_model", "model.text_model")  # where models have their decoder
PARTS = ("embed_tokens", "layers", "rotary_emb")
NORMS = ("norm", "embedding_norm")  # names of the last one
# What no graph here computes, by the setting that asks for it.
UNKNOWN = {
    "num_kv_shared_layers": "layers that share keys and values",
    "hidden_size_per_layer_input": "inputs of each layer's own",
    "use_bidirectional_attention": "attention to later tokens",
    "cross_attention_layers": "layers of cross attention",
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
}


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """A model's decoder; its modules live on the meta device.

    Attributes:
        name: of the decoder in its model.
        text_model: embed_tokens, layers, and as rotary_emb a `Turns`, or one by each name of
            `ropes`.
        norm: its last one.
        head: hidden [..., C] -> logits [..., vocab], up to `logit_scale`.
        attention: one of the layers' attention modules.
        ropes: by transformers' name of a type of layers, or by "" where all have one.
        turns: of each layer, the name of its rope.
        embedding_scale: by which all that the first layer reads is multiplied.
        token_scale: the part of it that is for tokens alone: encoders divide features by it.
        logit_scale: by which logits are multiplied.
    """

    name: str
    text_model: nn.Module
    norm: nn.Module
    head: nn.Module
    attention: nn.Module
    ropes: Mapping[str, Rope]
    turns: tuple[str, ...]
    dims: Dims
    kinds: tuple[str, ...]
    embedding_scale: float
    token_scale: float
    logit_scale: float

    @property
    def rope(self) -> Rope:
        """One of the ropes, which differ in frequencies and their scaling alone."""
        return next(iter(self.ropes.values()))

    @property
    def layers(self) -> Sequence[nn.Module]:
        return list(self.text_model.get_submodule("layers").children())

    @property
    def embed_tokens(self) -> nn.Module:
        return self.text_model.get_submodule("embed_tokens")

    def constants(self) -> dict[str, torch.Tensor]:
        """Values of the buffers of `Turns`, by their names in the model."""
        return {
            ".".join(filter(None, (self.name, "rotary_emb", of, name))): value
            for of, rope in self.ropes.items()
            for name, value in Turns.constants(rope).items()
        }


def check_text(text: Any, where: str) -> None:
    """Refuse a decoder that no graph here can run, as far as its configuration tells.

    Raises:
        FamilyError: names the setting and what it asks for.
    """
    if text.model_type != type(text).model_type:
        raise FamilyError(
            f"{where}: expected a decoder of {type(text).model_type}, found "
            f"{quoted(text.model_type)}; this version of avl cannot export it"
        )
    window = getattr(text, "sliding_window", None)
    if window is not None and (type(window) is not int or window < 0):
        raise FamilyError(
            f"{where}: expected sliding_window to be a number of tokens or null, found "
            f"{quoted(window, 40)}; fix the file"
        )
    named = getattr(text, "layer_types", None) or ()
    other = next((layer for layer, name in enumerate(named) if name not in KINDS), None)
    if other is not None:
        raise FamilyError(
            f"{where}: expected layer_types of {', '.join(KINDS)}, found {quoted(named[other])} "
            f"as that of layer {other}; this version of avl cannot export it"
        )
    if WINDOWED in named and not window:
        raise FamilyError(
            f"{where}: expected a sliding_window for the layers of {WINDOWED}, found none; fix "
            "the file"
        )
    for name, what in UNKNOWN.items():
        value = getattr(text, name, None)
        if value:
            raise FamilyError(
                f"{where}: expected a decoder without {what}, found {name} of {quoted(value, 40)} "
                f"for {quoted(text.model_type)}; this version of avl cannot export it"
            )
    check_rope(text, where)


def adapt(model: Any, where: str, *, slides: bool = False) -> Decoder:
    """The decoder of `model`, a model of transformers on the meta device.

    Its RoPE is replaced by `Turns`.

    Args:
        slides: whether windows slide on; else a package's context ends with them.

    Raises:
        FamilyError: it does something that no graph here does; says what, and in which layer.
    """
    name = next((name for name in NAMES if _has(model, name)), NAMES[0])
    text_model: Any = model.get_submodule(name)
    text = text_model.config
    missing = [part for part in PARTS if not hasattr(text_model, part)]
    norm = next((name for name in NORMS if hasattr(text_model, name)), None)
    if missing or norm is None:
        raise FamilyError(
            f"{where}: expected a decoder with {', '.join((*PARTS, NORMS[0]))}, found "
            f"{quoted(text.model_type)} without {(*missing, NORMS[0])[0]}; this version of avl "
            "cannot export it"
        )
    layers = list(text_model.layers)
    named = getattr(text, "layer_types", None) or ["full_attention"] * len(layers)
    kinds = tuple((SLIDES if slides else KINDS)[kind] for kind in named)
    calls, sizes = [], []
    first: dict[tuple[int, str], int] = {}  # of those that are alike and called the same
    for n, sort in enumerate(zip(firsts(layers), kinds, strict=True)):
        first.setdefault(sort, n)
    for n in first.values():
        kind = LAYER_KINDS[kinds[n]]
        if kind.has_rows:
            calls.append(observe_layer(text_model, n, layers[n], where))
        else:
            sizes.append(observe_state(text_model, n, layers[n], kind, where))
    if not calls:
        raise FamilyError(
            f"{where}: expected a layer of attention among others, found layer_types of "
            f"{', '.join(sorted(set(named)))}; this version of avl cannot export it"
        )
    others = tuple(n for n, kind in enumerate(kinds) if not LAYER_KINDS[kind].has_rows)
    shapes = [(call.query, call.key) for call in calls]
    if len(set(shapes)) > 1:
        raise FamilyError(
            f"{where}: expected layers of one number and size of heads, found {shapes[0]} and "
            f"{next(shape for shape in shapes if shape != shapes[0])} as queries and keys [batch, "
            "heads, rows, size]; this version of avl cannot export it"
        )
    (_, heads, _, head_dim), (_, kv_heads, _, _) = shapes[0]
    attention = calls[0].module
    window = getattr(text, "sliding_window", None)
    context = min(text.max_position_embeddings, FOREVER if slides else window or FOREVER)
    rotary = type(text_model.rotary_emb)(text)
    ropes = observe_ropes(rotary, attention, head_dim, context, named, where)
    axes = next(iter(ropes.values())).axes
    token_scale = observe_embedding(text_model, where)
    embedding_scale = observe_loop(text_model, norm, axes, where) * token_scale
    logit_scale = observe_head(model, where)
    dims = Dims(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=len(layers),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=text.vocab_size,
        max_positions=context,
        position_axes=axes,
        states=shared_sizes(sizes, others, where),
    )
    made = {of: Turns(rope) for of, rope in ropes.items()}
    text_model.rotary_emb = made[""] if "" in made else nn.ModuleDict(made)
    return Decoder(
        name,
        text_model,
        text_model.get_submodule(norm),
        model.get_submodule("lm_head"),
        attention,
        ropes,
        ("",) * len(layers) if "" in ropes else tuple(named),
        dims,
        kinds,
        embedding_scale,
        token_scale,
        logit_scale,
    )


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True

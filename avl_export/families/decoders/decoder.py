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
from avl_export.families.decoders.experts import observe_experts
from avl_export.families.decoders.layer_inputs import TABLE, LayerInputs
from avl_export.families.decoders.observe import (
    Attended,
    observe_embedding,
    observe_head,
    observe_layer,
    observe_loop,
)
from avl_export.families.decoders.rope import Rope, Turns, check_rope, observe_ropes
from avl_export.families.decoders.states import observe_state, shared_sizes
from avl_export.families.replicate import firsts
from avl_plugins.errors import quoted
from avl_plugins.graph_io import (
    FULL,
    GATED_DELTA,
    LAYER_KINDS,
    SHARED,
    SHORT_CONVOLUTION,
    SLIDING,
)
from avl_runtime.package.dims import Dims, SharedRows

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
BOTH_WAYS = "use_bidirectional_attention"
EXPERTS = "a mixture of experts"
# What no graph here computes, by the setting that asks for it.
UNKNOWN = {
    BOTH_WAYS: "attention to later tokens",
    "altup_num_inputs": "several states of a token",
    "cross_attention_layers": "layers of cross attention",
    "enable_moe_block": EXPERTS,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
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
        softcap: between which and its negative logits are brought by a tanh, at last; None: not.
        table_scale: what the table of layers' inputs multiplies its rows with.
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
    softcap: float | None
    table_scale: float

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

    @property
    def tables(self) -> tuple[nn.Module, ...]:
        """What is looked up row by row: `embed_tokens`, and the table of layers' inputs if any."""
        of_layers = [self.text_model.get_submodule(TABLE)] if self.dims.layer_inputs else []
        return (self.embed_tokens, *of_layers)

    def inputs_of(self, first: int, last: int) -> LayerInputs | None:
        """What layers `first` to `last` - 1 read beside states; None where they read nothing."""
        size = self.dims.layer_inputs
        if not size:
            return None
        return LayerInputs(self.text_model, size, self.table_scale, first, last)

    def constants(self) -> dict[str, torch.Tensor]:
        """Values of the buffers of `Turns`, by their names in the model."""
        return {
            ".".join(filter(None, (self.name, "rotary_emb", of, name))): value
            for of, rope in self.ropes.items()
            for name, value in Turns.constants(rope).items()
        }


def check_text(text: Any, where: str, *, both_ways: bool = False, experts: bool = False) -> None:
    """Refuse a decoder that no graph here can run, as far as its configuration tells.

    Args:
        both_ways: whether attention to later tokens is known to the caller.
        experts: whether a mixture of them is.

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
        known = (both_ways and name == BOTH_WAYS) or (experts and what == EXPERTS)
        if value and not known:
            raise FamilyError(
                f"{where}: expected a decoder without {what}, found {name} of {quoted(value, 40)} "
                f"for {quoted(text.model_type)}; this version of avl cannot export it"
            )
    check_rope(text, where)


def adapt(model: Any, where: str, *, slides: bool = False, both_ways: bool = False) -> Decoder:
    """The decoder of `model`, a model of transformers on the meta device.

    Its RoPE is replaced by `Turns`.

    Args:
        slides: whether windows slide on; else a package's context ends with them.
        both_ways: as for `check_text`.

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
    size = getattr(text, "hidden_size_per_layer_input", None) or 0
    calls: dict[int, Attended] = {}
    sizes = []
    handed: dict[str, Any] = {}  # keys and values that transformers hands from layer to layer
    sorts = list(zip(firsts(layers), kinds, strict=True))
    first: dict[tuple[int, str], int] = {}  # of those that are alike and called the same
    for n, sort in enumerate(sorts):
        first.setdefault(sort, n)
    for n in first.values():
        kind = LAYER_KINDS[kinds[n]]
        if kind.has_rows:
            calls[n] = observe_layer(text_model, n, layers[n], where, handed, both_ways)
        else:
            sizes.append(observe_state(text_model, n, layers[n], kind, where))
    if not calls:
        raise FamilyError(
            f"{where}: expected a layer of attention among others, found layer_types of "
            f"{', '.join(sorted(set(named)))}; this version of avl cannot export it"
        )
    others = tuple(n for n, kind in enumerate(kinds) if not LAYER_KINDS[kind].has_rows)
    counts = [(call.query[1], call.key[1]) for call in calls.values()]
    if len(set(counts)) > 1:
        raise FamilyError(
            f"{where}: expected layers of one number of heads, found {counts[0]} and "
            f"{next(count for count in counts if count != counts[0])} of queries and keys; this "
            "version of avl cannot export it"
        )
    heads, kv_heads = counts[0]
    of_types = {named[n]: call.query[-1] for n, call in calls.items()}
    attention = next(iter(calls.values())).module
    sources = _sources(calls, [first[sort] for sort in sorts])
    kinds = tuple(SHARED.name if n in sources else kind for n, kind in enumerate(kinds))
    window = getattr(text, "sliding_window", None)
    context = min(text.max_position_embeddings, FOREVER if slides else window or FOREVER)
    rotary = type(text_model.rotary_emb)(text)
    ropes = observe_ropes(rotary, attention, of_types, context, named, where)
    if any(call.query[-1] != of_types[named[n]] for n, call in calls.items()) or (
        "" in ropes and len(set(of_types.values())) > 1
    ):
        raise FamilyError(
            f"{where}: expected heads of one size in layers of one type and RoPE, found "
            f"{sorted({call.query[-1] for call in calls.values()})}; this version of avl cannot "
            "export it"
        )
    largest, several = max(of_types.values()), len(set(of_types.values())) > 1
    axes = next(iter(ropes.values())).axes
    token_scale = observe_embedding(text_model, text_model.embed_tokens, where)
    table_scale = observe_embedding(text_model, getattr(text_model, TABLE), where) if size else 1.0
    embedding_scale = observe_loop(text_model, norm, axes, where) * token_scale
    cap = getattr(text, "final_logit_softcapping", None)
    logit_scale, softcap = observe_head(model, cap, where)
    dims = Dims(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=len(layers),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=largest,
        vocab_size=text.vocab_size,
        max_positions=context,
        position_axes=axes,
        states=shared_sizes(sizes, others, where),
        shared=_shared(layers, sources, text.intermediate_size),
        layer_inputs=size,
        experts=observe_experts(layers, text, where),
        head_dims=tuple(of_types.get(kind, largest) for kind in named) if several else None,
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
        softcap,
        table_scale,
    )


def _sources(calls: Mapping[int, Attended], alike: Sequence[int]) -> dict[int, int]:
    """Layers whose attention was given the very keys of an earlier layer, with that one.

    Args:
        calls: of some layers.
        alike: of each layer, the one among them that it is like.
    """
    owners = {id(call.keys): n for n, call in reversed(list(calls.items()))}
    return {
        n: owner
        for n, one in enumerate(alike)
        if one in calls and (owner := owners[id(calls[one].keys)]) != one
    }


def _shared(layers: Sequence[Any], sources: Mapping[int, int], usual: int) -> SharedRows | None:
    """What is said of layers without rows of their own; `usual` is the others' intermediate_size.

    None where there are none.
    """
    sizes = [getattr(getattr(layers[n], "mlp", None), "intermediate_size", usual) for n in sources]
    return SharedRows(tuple(sources.items()), max(sizes)) if sizes else None


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True

"""What families with a Llama-like decoder share: which ones fit, their sizes and constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from avl_export.checkpoint.supported import FamilyError
from avl_plugins.errors import quoted
from avl_plugins.graph_io import FULL
from avl_runtime.package.manifest import Dims

STATIC_ROPE = ("default", "linear", "llama3", "yarn", "dynamic")
FOREVER = 1 << 62
WINDOWED = "sliding_attention"
# Kinds of layers, by transformers' names. Within its window, windowed attention is full attention,
# and `decoder_dims` lets no package go further.
KINDS = {"full_attention": FULL.name, WINDOWED: FULL.name}


def check_decoder(text: Any, types: Sequence[str], where: str) -> None:
    """Refuse a decoder that no graph here can run.

    Raises:
        FamilyError: `text` configures none of `types`, layers of another kind than attention, or
            RoPE whose frequencies change.
    """
    if text.model_type not in types:
        raise FamilyError(
            f"{where}: expected a decoder of {', '.join(types)}, found "
            f"{quoted(text.model_type)}; this version of avl cannot export it"
        )
    window = getattr(text, "sliding_window", None)
    if window is not None and (type(window) is not int or window < 0):
        raise FamilyError(
            f"{where}: expected sliding_window to be a number of tokens or null, found "
            f"{quoted(window, 40)}; fix the file"
        )
    named = layer_types(text)
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
    rope = (text.rope_parameters or {}).get("rope_type", "default")
    if rope not in STATIC_ROPE:
        raise FamilyError(
            f"{where}: expected a rope_type of {', '.join(STATIC_ROPE)}, found {quoted(rope)}, "
            "whose frequencies change with the length; this version of avl cannot export it"
        )


def layer_types(text: Any) -> Sequence[str]:
    """What transformers calls each layer; Llama's are alike, and so are Mistral's, unlisted."""
    found: Sequence[str] | None = getattr(text, "layer_types", None)
    if found is not None:
        return found
    windowed = text.model_type == "mistral" and text.sliding_window
    return [WINDOWED if windowed else "full_attention"] * text.num_hidden_layers


def layer_kinds(text: Any) -> tuple[str, ...]:
    """The kind of each layer, a name in `graph_io.LAYER_KINDS`; `check_decoder` has seen `text`."""
    return tuple(KINDS[name] for name in layer_types(text))


def fix_rope(text_model: Any) -> None:
    """Keep a dynamic RoPE from looking at positions, which a graph cannot branch on.

    It stretches its frequencies behind max_position_embeddings, which is as far as `decoder_dims`
    lets a package go; up to there it is the default RoPE.
    """
    if text_model.rotary_emb.rope_type == "dynamic":
        text_model.rotary_emb.rope_type = "default"


def decoder_dims(text: Any, position_axes: Literal[1, 3] = 1) -> Dims:
    """Sizes of the decoder that `text` configures."""
    window = getattr(text, "sliding_window", None)
    return Dims(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab_size=text.vocab_size,
        max_positions=min(text.max_position_embeddings, window or FOREVER),
        position_axes=position_axes,
    )


def decoder_constants(text_model: Any, name: str) -> dict[str, torch.Tensor]:
    """The buffers of `text_model`, called `name` in its model, which no checkpoint stores."""
    rotary = type(text_model.rotary_emb)(text_model.config)
    return {f"{name}.rotary_emb.inv_freq": rotary.inv_freq}

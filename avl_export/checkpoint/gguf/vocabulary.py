"""A decoder's tokenizer, made of what its GGUF file tells, by transformers' own classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from avl_export.checkpoint.gguf.config import ASK, Told
from avl_export.checkpoint.gguf.header import GgufFile
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_plugins.errors import quoted

# llama.cpp's numbers of kinds of tokens.
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"
ENDS = ("<|endoftext|>",)  # ends a reply too, as in Qwen's generation_config.json
QWEN = "qwen2"  # how text is cut before it is merged


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer and what its tokens are.

    Attributes:
        tokenizer: tokenizer.json.
        settings: tokenizer_config.json without a template.
        ids: of tokens by their texts.
        ends: tokens that end a reply; `bos` and `pad` where there are such.
    """

    tokenizer: Mapping[str, Any]
    settings: Mapping[str, Any]
    ids: Mapping[str, int]
    ends: tuple[int, ...]
    bos: int | None
    pad: int | None


def read_vocabulary(file: GgufFile) -> Vocabulary:
    """The tokenizer in `file`.

    Raises:
        CheckpointError: there is none, or one that transformers' classes for these models are not.
    """
    told = Told(file, "tokenizer.ggml")
    model, words = told.get("model", None), told.get("tokens", None)
    if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
        raise told.unfit("tokens", "a vocabulary", words)
    kinds = told.numbers("token_type", most=len(words)) or [1] * len(words)
    if len(kinds) != len(words):
        raise told.unfit("token_type", "one for each token", f"{len(kinds)} for {len(words)}")
    known = [n for n, kind in enumerate(kinds) if kind != UNUSED]  # others only fill the table
    ids = {words[number]: number for number in known}
    if len(ids) != len(known):
        raise told.unfit("tokens", "each once", "one twice")
    special = {
        name: told.token(f"{key}_token_id", len(words))
        for name, key in (
            ("bos", "bos"),
            ("eos", "eos"),
            ("unk", "unknown"),
            ("pad", "padding"),
        )
    }
    eos = special["eos"]
    if eos is None:
        raise told.unfit("eos_token_id", "the token that ends a reply", None)
    texts = {f"{name}_token": words[n] for name, n in special.items() if n is not None}
    if model == SENTENCE_PIECE:
        made = _sentence_piece(told, ids, texts)
    elif model == BYTE_LEVEL and told.get("pre", None) == QWEN:
        made = _byte_level(told, ids, texts)
    else:
        raise CheckpointError(
            f"{file.path}: expected a tokenizer {SENTENCE_PIECE}, or {BYTE_LEVEL} cut as {QWEN}, "
            f"found {quoted(model, 40)} and {quoted(told.get('pre', None), 40)}; {ASK}"
        )
    named = [number for number in special.values() if number is not None]
    _mark(made, {words[n]: CONTROL if n in named else kinds[n] for n in known})
    backend = json.loads(made.backend_tokenizer.to_str())
    also = [told.token("eot_token_id", len(words)), *(ids.get(word) for word in ENDS)]
    ends = dict.fromkeys([eos, *(number for number in also if number is not None)])
    return Vocabulary(backend, texts, ids, tuple(ends), special["bos"], special["pad"])


def _sentence_piece(told: Told, ids: Mapping[str, int], texts: Mapping[str, str]) -> Any:
    """Merges are not stored, and follow from the pieces' scores."""
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    scores = told.get("scores", None)
    if not isinstance(scores, np.ndarray) or len(scores) != len(ids):
        raise told.unfit("scores", "one for each token", scores)
    pieces = dict(zip(ids, scores.tolist(), strict=True))
    return LlamaTokenizer(
        vocab=dict(ids),
        merges=generate_merges(dict(ids), pieces),
        add_bos_token=bool(told.get("add_bos_token", True)),
        add_eos_token=bool(told.get("add_eos_token", False)),
        add_prefix_space=bool(told.get("add_space_prefix", True)),
        **texts,
    )


def _byte_level(told: Told, ids: Mapping[str, int], texts: Mapping[str, str]) -> Any:
    from transformers import Qwen2Tokenizer

    merges = told.get("merges", None)
    pairs = [tuple(one.split(" ")) for one in merges] if isinstance(merges, list) else []
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise told.unfit("merges", "pairs of pieces", merges)
    if bool(told.get("add_bos_token", False)):
        raise told.unfit("add_bos_token", "false for a tokenizer of Qwen's", True)
    return Qwen2Tokenizer(vocab=dict(ids), merges=pairs, **texts)


def _mark(made: Any, kinds: Mapping[str, int]) -> None:
    """Tokens that text is never cut within: control tokens are left out of replies, too."""
    from tokenizers import AddedToken

    backend = made.backend_tokenizer
    for kind, add in (
        (CONTROL, backend.add_special_tokens),
        (USER_DEFINED, backend.add_tokens),
    ):
        special = kind == CONTROL
        words = [word for word, own in kinds.items() if own == kind]
        add([AddedToken(word, normalized=False, special=special) for word in words])

"""A checkpoint's tokenizer as transformers builds it, and the names of its special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from avl_export.checkpoint.checkpoint import TOKENIZER, Checkpoint
from avl_export.checkpoint.safetensors_header import FETCH_AGAIN, CheckpointError, check_pointer

CONFIG = "tokenizer_config.json"
STANDARD = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Words, blanks, line breaks, figures, accents and characters of several bytes.
PROBE = "USER:  What's in the\n\npicture? 1234 naïve façade é 12,5 € 日本 🙂 ASSISTANT: "


@dataclass(frozen=True, slots=True)
class PackagedTokenizer:
    """What a package holds of a tokenizer.

    Attributes:
        data: its tokenizer.json.
        tokenizer: the same, read.
        names: of special tokens, and the text of each.
        note: a line about what differs from the checkpoint's file, None if nothing does.
    """

    data: bytes
    tokenizer: Tokenizer
    names: dict[str, str]
    note: str | None

    def bare(self) -> PackagedTokenizer:
        """The same without the tokens that it writes around each text, as BOS."""
        tree = json.loads(self.tokenizer.to_str()) | {"post_processor": None}
        data = json.dumps(tree, ensure_ascii=False)
        return replace(self, data=data.encode(), tokenizer=Tokenizer.from_str(data))


def packaged_tokenizer(checkpoint: Checkpoint) -> PackagedTokenizer:
    """Read tokenizer.json, and let transformers read it with the files beside it.

    Its class for the model, or tokens that other files add, may make another tokenizer of it: that
    one the model is used with, and so does the package.

    Raises:
        CheckpointError: tokenizer.json is damaged.
    """
    if checkpoint.built_in:  # made by transformers' class already
        data = json.dumps(checkpoint.read_json(TOKENIZER)).encode()
        return PackagedTokenizer(data, Tokenizer.from_buffer(data), _named(checkpoint), None)
    path = checkpoint.folder / TOKENIZER
    data, own = _read(path)
    try:
        with _quietly():
            loaded: Any = AutoTokenizer.from_pretrained(
                checkpoint.folder, local_files_only=True, trust_remote_code=False
            )
            built = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
            names = {str(name): str(text) for name, text in loaded.special_tokens_map.items()}
            built.no_padding()
            built.no_truncation()
            probed = _probed(built, built)
    # Files of others can make it fail in any way.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        note = f"{TOKENIZER} is taken by itself, as transformers cannot load it: {reason}"
        return PackagedTokenizer(data, own, _named(checkpoint), note)
    own.no_padding()
    own.no_truncation()
    if built.to_str() == own.to_str():
        return PackagedTokenizer(data, own, names, None)
    same = probed == _probed(own, built)
    kind = type(loaded).__name__
    differs = f"the tokenizer is transformers' {kind}, of other tokens than {TOKENIZER} by itself"
    return PackagedTokenizer(built.to_str().encode(), built, names, None if same else differs)


def _read(path: Path) -> tuple[bytes, Tokenizer]:
    try:
        data = path.read_bytes()
        check_pointer(data, path)
        return data, Tokenizer.from_buffer(data)
    except CheckpointError:
        raise
    # The library raises bare Exception for a file it cannot read.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"{path}: expected a tokenizer, found: {reason}; {FETCH_AGAIN}"
        ) from None


def _named(checkpoint: Checkpoint) -> dict[str, str]:
    """Names that tokenizer_config.json gives by itself."""
    found = {}
    settings = checkpoint.read_json(CONFIG)
    for name in (f"{kind}_token" for kind in STANDARD):
        value = settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _probed(tokenizer: Tokenizer, known: Tokenizer) -> list[int]:
    """Ids of a text that holds every special token of `known`."""
    added = sorted(token.content for token in known.get_added_tokens_decoder().values())
    return list(tokenizer.encode(f"{PROBE}x".join(["", *added, ""])).ids)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers' advice to those who train off stderr."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)

"""The text decoder of a checkpoint as a checkpoint of its own, which peers' converters take."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
DECODER_KEY = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?(?!lm_head)(.+)$")
HEAD_KEY = re.compile(r"(?:^|\.)lm_head\.weight$")
COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def write_text_model(checkpoint: Path, text: Path) -> None:
    """The decoder and its tokenizer as a folder of transformers; ends the process if it cannot."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    inner = config.get("text_config", config)
    kind = inner.get("model_type", "llama")
    if kind not in ARCHITECTURES:
        sys.exit(f"expected a decoder of {', '.join(ARCHITECTURES)}, found {kind}, which it lacks")
    text.mkdir(parents=True)
    tied = bool(inner.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    named = {"architectures": [ARCHITECTURES[kind]], "model_type": kind}
    settings = {**inner, **named, "tie_word_embeddings": tied}
    (text / "config.json").write_text(json.dumps(settings))
    for name in COPIED:
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, text / name)
    tensors = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            for key in file.keys():  # noqa: SIM118  (no mapping)
                found = DECODER_KEY.match(key)
                if found:
                    tensors[f"model.{found[1]}"] = file.get_tensor(key)
                elif HEAD_KEY.search(key):
                    tensors["lm_head.weight"] = file.get_tensor(key)
    if not tied and "lm_head.weight" not in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, text / "model.safetensors", {"format": "pt"})

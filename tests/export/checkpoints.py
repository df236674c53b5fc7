"""Random and sparse LLaVA checkpoints for the export tests."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 256,
}
TEXT_CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
ITEM = {"F32": 4, "F16": 2, "BF16": 2}


def make_config(text_type: str = "llama", text: dict[str, Any] | None = None, **top: Any) -> Any:
    """A tiny LLaVA configuration; `text` and `top` override its fields."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    fields = {**TEXT, "bos_token_id": 1, "eos_token_id": 2, **(text or {})}
    return LlavaConfig(
        vision_config=vision,
        text_config=TEXT_CONFIGS[text_type](**fields),
        **{"image_token_index": 98, **top},
    )


def write_extras(folder: Path, image_size: int = 56, image_token: int = 98) -> None:
    """The files beside the weights: tokenizer.json, preprocessor_config.json."""
    words = {f"w{number}": number for number in range(image_token)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w3"))
    tokenizer.add_special_tokens(["<image>"])  # takes the next number
    tokenizer.save(str(folder / "tokenizer.json"))
    side = {"height": image_size, "width": image_size}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": image_size}, "crop_size": side})
    )


def write_random(folder: Path, config: Any, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint of `config` with random weights large enough to matter."""
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
            elif "norm" not in name:
                parameter.normal_(0, 0.1)
    model.to(dtype).save_pretrained(folder)
    write_extras(folder)
    return folder


def write_sparse(folder: Path, config: Any, dtype: str = "F16", shard_size: int = 1 << 30) -> Path:
    """A checkpoint of `config` whose safetensors files are holes: no data is ever written."""
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = LlavaForConditionalGeneration(config).state_dict()
    shards: list[dict[str, Any]] = [{}]
    size = 0
    for name, tensor in state.items():
        nbytes = tensor.numel() * ITEM[dtype]
        if size + nbytes > shard_size and shards[-1]:
            shards.append({})
            size = 0
        entry = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [size, size + nbytes]}
        shards[-1][name] = entry
        size += nbytes
    names = {}
    for number, header in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        names |= dict.fromkeys(header, file)
        write_file(folder / file, header, max(e["data_offsets"][1] for e in header.values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    write_extras(folder, config.vision_config.image_size, config.image_token_id)
    return folder


def write_file(path: Path, header: Any, data_size: int) -> None:
    """A safetensors file with this header and `data_size` zero bytes."""
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + data_size)


def split_file(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join_file(path: Path, header: Any, data: bytes) -> None:
    """Write a safetensors file, however wrong its header."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)

"""Adapters as PEFT trains and saves them, for tiny random checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

WEIGHTS = "adapter_model.safetensors"
# What PEFT trains, of every kind.
TRAINED = ("lora_", "modules_to_save", "trainable")


def base_model(folder: Path) -> Any:
    """transformers' model in fp32."""
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def train(base: Path, folder: Path, seed: int = 0, **config: Any) -> Path:
    """Save an adapter for `base` whose every tensor is random."""
    model = get_peft_model(base_model(base), LoraConfig(**config))
    randomize(model, seed)
    model.save_pretrained(folder)
    edit(folder, base_model_name_or_path=str(base))
    return folder


def randomize(model: Any, seed: int) -> None:
    """Give what an adapter trains values that matter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue
            if parameter.dim() == 1:
                parameter.add_(torch.rand_like(parameter))
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)


def adapted(base: Path, folder: Path) -> Any:
    """PEFT's own model of both, not merged."""
    return PeftModel.from_pretrained(base_model(base), folder).eval()


def edit(folder: Path, **changes: Any) -> None:
    """Change adapter_config.json; None takes a key away."""
    path = folder / "adapter_config.json"
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def rename(folder: Path, change: Callable[[str], str]) -> None:
    """Give the adapter's tensors other names."""
    path = folder / WEIGHTS
    save_file({change(key): tensor for key, tensor in load_file(path).items()}, path)

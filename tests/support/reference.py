"""Hugging Face models and their inputs, as the reference that a package is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration


def load_reference(folder: Path) -> LlavaForConditionalGeneration:
    """The checkpoint in float32 with eager attention."""
    return LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def encode(folder: Path, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """One user turn through the checkpoint's processor, as its model takes it."""
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return dict(processor(text=text, images=list(images), return_tensors="pt"))

"""A LLaVA checkpoint of real width and few layers, with random weights that differ."""

from __future__ import annotations

from pathlib import Path

from export.checkpoints import make_config, write_sparse
from random_weights import fill


def write_wide(folder: Path, layers: int, hidden: int) -> Path:
    """In fp16; the vision tower is tiny."""
    text = {
        "hidden_size": hidden,
        "intermediate_size": hidden * 8 // 3 // 128 * 128,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128,
        "num_key_value_heads": hidden // 128,
        "max_position_embeddings": 2048,
    }
    write_sparse(folder, make_config(text=text))
    for path in folder.glob("*.safetensors"):
        fill(path)
    return folder

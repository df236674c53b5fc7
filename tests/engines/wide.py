"""A LLaVA checkpoint of real width and few layers, with random weights that differ."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from export.checkpoints import make_config, write_sparse


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


def fill(path: Path, seed: int = 0) -> None:
    """Random fp16 in the place of a sparse file's zeros: no two tensors are alike."""
    rng = np.random.default_rng(seed)
    noise = (rng.standard_normal(1 << 20) * 0.02).astype(np.float16)
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for entry in header.values():
            begin, end = entry["data_offsets"]
            file.seek(8 + length + begin)
            left = (end - begin) // 2
            while left:
                piece = np.roll(noise, int(rng.integers(len(noise))))[:left]
                file.write(piece.tobytes())
                left -= len(piece)

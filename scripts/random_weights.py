"""Fills the sparse checkpoints that scripts and tests make, where zeros would not do."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np


def fill(path: Path, seed: int = 0) -> None:
    """Random fp16 in the place of the zeros of a safetensors file: no two tensors are alike.

    A builder that meets equal tensors stores them once, and engines would come out too small.
    """
    rng = np.random.default_rng(seed)
    noise = (rng.standard_normal(1 << 22) * 0.02).astype(np.float16)
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for entry in header.values():
            begin, end = entry["data_offsets"]
            file.seek(8 + length + begin)
            left = (end - begin) // noise.itemsize
            while left:
                piece = np.roll(noise, int(rng.integers(len(noise))))[:left]
                file.write(piece.tobytes())
                left -= len(piece)

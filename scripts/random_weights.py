"""Fills the sparse checkpoints that scripts and tests make, where zeros would not do."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Mean and standard deviation of a tensor's weights, by its name and shape.
Spread = Callable[[str, Sequence[int]], tuple[float, float]]


def small(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """The same for every tensor: enough where values are not looked at."""
    return 0.0, 0.02


def like_trained(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Keeps activations near 1 through any number of layers, as in a trained model."""
    if len(shape) <= 1:
        return (1.0, 0.1) if "norm" in name and name.endswith("weight") else (0.0, 0.02)
    return 0.0, 1.0 if "embed_tokens" in name else 1 / math.sqrt(math.prod(shape[1:]))


def like_trained_gemma4(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """The same for Gemma 4.

    Its queries are scaled by their norm's weight alone: at 1, attention is so sharp that float32
    and float64 differ in the first digit of the logits. Layers are multiplied by a stored number,
    and the tower's linears stay within stored bounds.
    """
    if name.endswith("q_norm.weight"):
        return shape[0] ** -0.5, 0.1 * shape[0] ** -0.5
    if name.endswith(("layer_scalar", "std_scale")):
        return 1.0, 0.1
    if name.endswith(("put_min", "put_max")):
        return (-9.0 if name.endswith("min") else 9.0), 0.1
    return like_trained(name, shape)


def fill(path: Path, seed: int = 0, spread: Spread = small) -> None:
    """Random numbers in the place of the zeros of a safetensors file: no two tensors are alike.

    A builder that meets equal tensors stores them once, and engines would come out too small.
    Memory stays at some tens of MB whatever the file's size.
    """
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(1 << 22, np.float32)
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            mean, deviation = spread(name, entry["shape"])
            file.seek(8 + length + entry["data_offsets"][0])
            left = math.prod(entry["shape"])
            while left:
                start = int(rng.integers(len(noise)))
                piece = np.concatenate([noise[start:], noise[:start]])[:left]
                file.write(
                    _stored(
                        np.float32(mean) + np.float32(deviation) * piece, entry["dtype"]
                    ).tobytes()
                )
                left -= len(piece)


def _stored(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """`values` as safetensors stores them."""
    if dtype == "BF16":
        # Half of the last bit that stays, so that cutting the rest off rounds.
        return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    return values.astype({"F32": np.float32, "F16": np.float16}[dtype])

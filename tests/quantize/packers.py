"""GPTQ and AWQ checkpoints, packed bit by bit as their own tools do it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ's order_map of the GEMM version


def pack_gptq(codes: np.ndarray) -> np.ndarray:
    """Codes 0 to 15 [inputs, outputs] -> int32 [inputs / 8, outputs]."""
    inputs, outputs = codes.shape
    words = np.zeros((inputs // 8, outputs), np.uint32)
    for i in range(inputs):
        for j in range(outputs):
            words[i // 8, j] |= np.uint32(int(codes[i, j]) << (4 * (i % 8)))
    return words.view(np.int32)


def pack_columns(codes: np.ndarray) -> np.ndarray:
    """Codes 0 to 15 [rows, outputs] -> int32 [rows, outputs / 8], in their own order."""
    rows, outputs = codes.shape
    words = np.zeros((rows, outputs // 8), np.uint32)
    for i in range(rows):
        for j in range(outputs):
            words[i, j // 8] |= np.uint32(int(codes[i, j]) << (4 * (j % 8)))
    return words.view(np.int32)


def pack_awq(codes: np.ndarray) -> np.ndarray:
    """Codes 0 to 15 [rows, outputs] -> int32 [rows, outputs / 8], interleaved."""
    rows, outputs = codes.shape
    words = np.zeros((rows, outputs // 8), np.uint32)
    for i in range(rows):
        for word in range(outputs // 8):
            for place in range(8):
                code = int(codes[i, 8 * word + AWQ_COLUMNS[place]])
                words[i, word] |= np.uint32(code << (4 * place))
    return words.view(np.int32)


def quantize_checkpoint(
    source: Path,
    folder: Path,
    method: str,
    group: int = 16,
    asymmetric: bool = False,
    config: dict[str, Any] | None = None,
    change: Callable[[dict[str, torch.Tensor]], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Turn the decoder's linears of an fp32 checkpoint into GPTQ or AWQ tensors.

    Codes, zeros and scales are random: nothing is measured but how they are read.

    Args:
        config: overrides fields of quantization_config.
        change: changes the tensors before they are saved.

    Returns:
        the floating-point weights that the codes stand for, by the checkpoint's keys.
    """
    rng = np.random.default_rng(0)
    folder.mkdir()
    for file in source.iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors, meant = load_file(source / "model.safetensors"), {}
    for key in [k for k in tensors if ".layers." in k and "language_model" in k]:
        weight = tensors[key]
        if weight.dim() != 2:
            continue
        outputs, inputs = weight.shape
        width = inputs if group == -1 else group
        codes = rng.integers(0, 16, (inputs, outputs))
        zeros = np.full((inputs // width, outputs), 8)
        if asymmetric:
            zeros = rng.integers(1, 16, zeros.shape)
        scales = (rng.random(zeros.shape) * 0.02 + 0.01).astype(np.float16)
        wide = np.repeat(scales.astype(np.float32), width, 0)
        dense = (codes - np.repeat(zeros, width, 0)).astype(np.float32) * wide
        meant[key] = torch.from_numpy(np.ascontiguousarray(dense.T))
        stem = key.removesuffix(".weight")
        del tensors[key]
        if method == "awq":
            words, zero_words = pack_awq(codes), pack_awq(zeros)
        else:
            stored = zeros if (config or {}).get("checkpoint_format") == "gptq_v2" else zeros - 1
            words, zero_words = pack_gptq(codes), pack_columns(stored)
            tensors[f"{stem}.g_idx"] = torch.arange(inputs, dtype=torch.int32) // width
        tensors[f"{stem}.qweight"] = torch.from_numpy(words)
        tensors[f"{stem}.qzeros"] = torch.from_numpy(zero_words)
        tensors[f"{stem}.scales"] = torch.from_numpy(scales)
    if change is not None:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    fields = {"quant_method": method, "bits": 4, "group_size": group, **(config or {})}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": fields}))
    return meant

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


def pack_gptq(codes: np.ndarray, bits: int = 4) -> np.ndarray:
    """Codes from 0 on [inputs, outputs] -> int32 [inputs * bits / 32, outputs]."""
    return np.ascontiguousarray(pack_columns(codes.T, bits).T)


def pack_columns(codes: np.ndarray, bits: int = 4) -> np.ndarray:
    """Codes from 0 on [rows, outputs] -> int32 [rows, outputs * bits / 32], in their own order.

    The last word is filled up with zeros.
    """
    (rows, outputs), n = codes.shape, 32 // bits
    words = np.zeros((rows, -(-outputs // n)), np.uint32)
    for i in range(rows):
        for j in range(outputs):
            words[i, j // n] |= np.uint32(int(codes[i, j]) << (bits * (j % n)))
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
    bits: int = 4,
    desc_act: bool | str = False,
    zero_offset: int = 1,
    wide: str | None = None,
    config: dict[str, Any] | None = None,
    change: Callable[[dict[str, torch.Tensor]], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Turn the decoder's linears of an fp32 checkpoint into GPTQ or AWQ tensors.

    Codes, zeros and scales are random: nothing is measured but how they are read.

    Args:
        zero_offset: what GPTQ takes from the codes of 0.
        wide: part of the names of weights with 8 bits in groups of 16 instead.
        desc_act: whether inputs are in another order, or part of the names of weights where so.
        config: overrides fields of quantization_config.
        change: changes the tensors before they are saved.

    Returns:
        the floating-point weights that the codes stand for, by the checkpoint's keys.
    """
    rng, told = np.random.default_rng(0), bits
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
        bits, width = told, inputs if group == -1 else group
        if wide is not None and wide in key:
            bits, width = 8, 16
        codes = rng.integers(0, 1 << bits, (inputs, outputs))
        zeros = np.full((inputs // width, outputs), 1 << (bits - 1))
        if asymmetric:
            zeros = rng.integers(1, 1 << bits, zeros.shape)
        scales = ((rng.random(zeros.shape) * 0.32 + 0.16) / (1 << bits)).astype(np.float16)
        groups = np.arange(inputs) // width
        if desc_act is True or (isinstance(desc_act, str) and desc_act in key):
            groups = rng.permutation(groups)
        dense = (codes - zeros[groups]).astype(np.float32) * scales.astype(np.float32)[groups]
        meant[key] = torch.from_numpy(np.ascontiguousarray(dense.T))
        stem = key.removesuffix(".weight")
        del tensors[key]
        if method == "awq":
            words, zero_words = pack_awq(codes), pack_awq(zeros)
        else:
            words, zero_words = pack_gptq(codes, bits), pack_columns(zeros - zero_offset, bits)
            tensors[f"{stem}.g_idx"] = torch.from_numpy(groups.astype(np.int32))
        tensors[f"{stem}.qweight"] = torch.from_numpy(words)
        tensors[f"{stem}.qzeros"] = torch.from_numpy(zero_words)
        tensors[f"{stem}.scales"] = torch.from_numpy(scales)
    if change is not None:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    fields = {"quant_method": method, "bits": told, "group_size": group, **(config or {})}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": fields}))
    return meant

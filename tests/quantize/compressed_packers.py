"""compressed-tensors checkpoints, packed word by word as its documentation says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantize.dense import Change, write_quantized
from quantize.packers import pack_columns


@dataclass(frozen=True)
class Scheme:
    """How some weights are stored.

    Attributes:
        group: inputs that share a scale, -1: all of an output's, 0: all of the tensor's.
        words: whether codes lie in words of 32 bits.
    """

    bits: int = 4
    group: int = 32
    symmetric: bool = True
    words: bool = True
    reordered: bool = False
    dtype: torch.dtype = torch.float32

    def config(self) -> dict[str, Any]:
        strategy = {0: "tensor", -1: "channel"}.get(self.group, "group")
        return {
            "targets": ["Linear"],
            "format": "pack-quantized" if self.words else "int-quantized",
            "input_activations": None,
            "weights": {
                "num_bits": self.bits,
                "type": "int",
                "symmetric": self.symmetric,
                "strategy": strategy,
                "group_size": max(self.group, 0) or None,
            },
        }

    def pack(
        self, rng: np.random.Generator, key: str, weight: torch.Tensor, to: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Put random codes of the shape of `weight` into `to`; returns what they mean."""
        (outputs, inputs), stem = weight.shape, key.removesuffix(".weight")
        middle = 1 << (self.bits - 1)
        groups = inputs // self.group if self.group > 0 else 1
        table = (outputs, groups) if self.group else (1, 1)
        codes = rng.integers(-middle, middle, (outputs, inputs))
        scales = torch.from_numpy((rng.random(table) * 0.16 + 0.08) / middle).to(self.dtype)
        zeros = np.zeros(table, np.int64)
        if not self.symmetric:
            zeros = rng.integers(-middle, middle, table)
        order = np.arange(inputs) // (inputs // groups)
        if self.reordered:
            order = rng.permutation(order)
            to[f"{stem}.weight_g_idx"] = torch.from_numpy(order.astype(np.int32))
        to[f"{stem}.weight_scale"] = scales if self.group else scales.reshape(1)
        if self.words:
            to[f"{stem}.weight_packed"] = torch.from_numpy(pack_columns(codes + middle, self.bits))
            to[f"{stem}.weight_shape"] = torch.tensor([outputs, inputs])
        else:
            to[key] = torch.from_numpy(codes.astype(np.int8))
        if not self.symmetric:
            stored = zeros.astype(np.int8)
            if self.words and self.group:
                stored = np.ascontiguousarray(pack_columns(zeros.T + middle, self.bits).T)
            to[f"{stem}.weight_zero_point"] = torch.from_numpy(stored)
        wide = np.broadcast_to(zeros, (outputs, groups))[:, order]
        factors = np.broadcast_to(scales.double().numpy(), (outputs, groups))[:, order]
        return torch.from_numpy(((codes - wide) * factors).astype(np.float32))


def write_compressed(
    source: Path,
    folder: Path,
    schemes: Mapping[str, Scheme],
    change: Change | None = None,
    **config: Any,
) -> dict[str, torch.Tensor]:
    """Compress each weight whose name matches a pattern, by the first that does.

    Returns:
        what the codes stand for, by the checkpoint's keys.
    """
    rng = np.random.default_rng(0)

    def pack(key: str, weight: torch.Tensor, to: dict[str, torch.Tensor]) -> torch.Tensor | None:
        for pattern, scheme in schemes.items():
            if re.search(pattern, key):
                return scheme.pack(rng, key, weight, to)
        return None

    groups = {f"group_{n}": scheme.config() for n, scheme in enumerate(schemes.values())}
    told = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if len(groups) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head"],
        "version": "0.12.2",
    }
    return write_quantized(source, folder, {**told, **config}, pack, change)


DECODER = r"language_model.*layers"
# A scheme for some weights, and others for others.
MIXED = {
    r"language_model.*q_proj": Scheme(8, -1, symmetric=False),
    r"language_model.*self_attn": Scheme(8, -1),
    r"layers\.1\..*down_proj": Scheme(8, 32, symmetric=False),
    r"language_model.*layers\.2": Scheme(4, 16, symmetric=False),
    DECODER: Scheme(),
}

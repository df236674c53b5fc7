"""Checkpoints whose weights are quantized: which method made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from avl_export.checkpoint.foreign import describe
from avl_export.checkpoint.packings.compressed import compressed_packing
from avl_export.checkpoint.packings.fp8 import fbgemm_packing, fp8_packing
from avl_export.checkpoint.packings.gptq import autoround_packing, gptq_packing
from avl_export.checkpoint.packings.hqq import hqq_packing
from avl_export.checkpoint.packings.packing import WAY_OUT, Packing, refuse
from avl_export.checkpoint.packings.torchao import torchao_packing
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_plugins.errors import quoted

METHODS: Mapping[str, Callable[[dict[str, Any], Path], Packing]] = {
    "gptq": gptq_packing,
    "awq": gptq_packing,
    "auto-round": autoround_packing,
    "compressed-tensors": compressed_packing,
    "torchao": torchao_packing,
    "hqq": hqq_packing,
    "fp8": fp8_packing,
    "fbgemm_fp8": fbgemm_packing,
}


def packing_of(config: dict[str, Any], folder: Path) -> Packing | None:
    """What `quantization_config` says; None for a checkpoint that is not quantized.

    Raises:
        CheckpointError: quantized in a way that is not read.
    """
    where = folder / "config.json"
    found = config.get("quantization_config")
    if found is None:
        _check_parts(config, where)
        return None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{where}: expected an object as quantization_config, found {quoted(found, 40)}; "
            "fetch the checkpoint again"
        )
    method = found.get("quant_method")
    read = METHODS.get(method) if isinstance(method, str) else None
    if read is None:
        raise refuse(where, found)
    return read(found, where)


def _check_parts(config: dict[str, Any], where: Path) -> None:
    """Refuse what is quantized in part, or says so where older tools did."""
    # What llm-compressor and MLX call it.
    parts = {name: config.get(name) for name in ("compression_config", "quantization")}
    for name in ("text_config", "llm_config", "vision_config"):
        part = config.get(name)
        parts[name] = part.get("quantization_config") if isinstance(part, dict) else None
    for name, found in parts.items():
        if isinstance(found, dict):
            raise CheckpointError(
                f"{where}: expected weights in fp32, fp16 or bf16, found in {name} that they are "
                f"quantized with {describe(found)}; {WAY_OUT}"
            )

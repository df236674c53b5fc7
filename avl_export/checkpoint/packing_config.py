"""Checkpoints whose linears already are INT4: what their config.json says about the codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from avl_export.checkpoint.foreign import describe
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_plugins.errors import quoted

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
SMALLEST, LARGEST = 16, 128  # inputs that share a scale in blocks that every backend takes
WAY_OUT = "export the checkpoint it was made from with --quantize int4"


@dataclass(frozen=True, slots=True)
class Packing:
    """How codes are packed.

    Attributes:
        method: gptq (eight inputs a word) or awq (eight outputs a word, interleaved).
        group: inputs that share a scale, None for all inputs.
        zero_offset: what was subtracted from the codes of 0 before they were packed.
    """

    method: Literal["gptq", "awq"]
    group: int | None
    zero_offset: int


def packing_of(config: dict[str, Any], folder: Path) -> Packing | None:
    """What `quantization_config` says; None for a checkpoint that is not quantized.

    Raises:
        CheckpointError: quantized otherwise than with GPTQ or AWQ to 4 bits.
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
    method, bits = found.get("quant_method"), found.get("bits")
    if method not in ("gptq", "awq") or bits != 4:
        raise CheckpointError(
            f"{where}: expected weights in fp32, fp16 or bf16, or quantized with gptq or awq to "
            f"4 bits, found them quantized with {describe(found)}; {WAY_OUT}"
        )
    layout = str(found.get("version", "gemm") if method == "awq" else _gptq_format(found)).lower()
    if layout not in ("gemm", "gptq", "gptq_v2"):
        raise CheckpointError(
            f"{where}: expected {method} codes in the gemm, gptq or gptq_v2 layout, found "
            f"{quoted(layout)}; {WAY_OUT}"
        )
    group = found.get("group_size", -1)
    if group != -1 and (not isinstance(group, int) or group < SMALLEST or group & (group - 1)):
        raise CheckpointError(
            f"{where}: expected a group_size of -1, or of {SMALLEST} or more and a power of two, "
            f"found {quoted(group)}; {WAY_OUT}"
        )
    return Packing(method, None if group == -1 else group, int(layout == "gptq"))


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


def _gptq_format(found: dict[str, Any]) -> str:
    return str(found.get("checkpoint_format") or "gptq")

"""What is said of weights in FP8 by transformers' own two methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avl_export.checkpoint.packings.packing import WAY_OUT, Packing, is_size, refuse
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_plugins.errors import quoted

UNROUNDED = "the checkpoint asks for activations rounded to FP8, which they are not"


def fp8_packing(found: dict[str, Any], where: Path) -> Packing:
    """How the weights are stored that `found`, a quantization_config of fp8, is about.

    Raises:
        CheckpointError: other values or scales than those that are read.
    """
    if found.get("fmt", "e4m3") != "e4m3" or found.get("expert_dtype", "fp8") != "fp8":
        raise refuse(where, found)
    if found.get("scale_fmt") not in (None, "float"):
        raise CheckpointError(
            f"{where}: expected scales that are numbers in floating point, found scale_fmt "
            f"{quoted(found['scale_fmt'])}; {WAY_OUT}"
        )
    block = found.get("weight_block_size")
    return Packing("fp8", "fp8", (8,), block=block_of(block, where), notes=(UNROUNDED,))


def fbgemm_packing(_found: dict[str, Any], _where: Path) -> Packing:
    """How the weights are stored that a quantization_config of fbgemm_fp8 is about."""
    return Packing("fbgemm_fp8", "fp8", (8,), notes=(UNROUNDED,))


def block_of(block: Any, where: Path) -> tuple[int, int] | None:
    """Outputs and inputs that share a scale; None where no blocks are told.

    Raises:
        CheckpointError: no two sizes.
    """
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(map(is_size, block)):
        raise CheckpointError(
            f"{where}: expected the outputs and inputs of a block, found {quoted(block)}; "
            "fetch the checkpoint again"
        )
    return block[0], block[1]

"""What GPTQ and AWQ say of their codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avl_export.checkpoint.packings.packing import WAY_OUT, Layout, Packing, refuse
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_plugins.errors import quoted

SMALLEST = 16  # inputs that share a scale
BITS = {"gptq": (4, 8), "awq": (4,)}


def gptq_packing(found: dict[str, Any], where: Path) -> Packing:
    """How the codes are packed that `found`, a quantization_config of gptq or awq, is about.

    Raises:
        CheckpointError: other bits, layouts or groups than those that are read.
    """
    method, bits = found["quant_method"], found.get("bits")
    if bits not in BITS[method] or isinstance(bits, bool):
        raise refuse(where, found)
    layout = found.get("version", "gemm") if method == "awq" else found.get("checkpoint_format")
    layout = str(layout or "gptq").lower()
    if layout not in ("gemm", "gptq", "gptq_v2"):
        raise CheckpointError(
            f"{where}: expected {method} codes in the gemm, gptq or gptq_v2 layout, found "
            f"{quoted(layout)}; {WAY_OUT}"
        )
    own: Layout = "awq" if method == "awq" else "gptq"
    offset = int(layout == "gptq")
    return Packing(method, own, (bits,), group_of(found.get("group_size", -1), where), offset)


def group_of(group: Any, where: Path) -> int | None:
    """Inputs that share a scale; None for all of them, which -1 stands for.

    Raises:
        CheckpointError: no such number.
    """
    if group == -1:
        return None
    if not isinstance(group, int) or group < SMALLEST or group & (group - 1):
        raise CheckpointError(
            f"{where}: expected a group_size of -1, or of {SMALLEST} or more and a power of two, "
            f"found {quoted(group)}; {WAY_OUT}"
        )
    return group

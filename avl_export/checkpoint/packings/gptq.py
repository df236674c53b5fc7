"""What GPTQ, AWQ and AutoRound, which packs as they do, say of their codes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avl_export.checkpoint.packings.packing import WAY_OUT, Layout, Packing, refuse
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_plugins.errors import quoted

SMALLEST = 16  # inputs that share a scale
BITS = {"gptq": (4, 8), "awq": (4,)}
# Names of AutoRound's formats: the layout, and what is subtracted from the codes of 0.
AUTOROUND: Mapping[tuple[str, ...], tuple[Layout, int]] = {
    ("auto_round:auto_gptq", "auto_round:gptq", "auto_gptq"): ("gptq", 1),
    ("auto_round", "auto_round:gptqmodel"): ("gptq", 0),
    ("auto_round:auto_awq", "auto_round:awq", "auto_awq"): ("awq", 0),
}


def gptq_packing(found: dict[str, Any], where: Path) -> Packing:
    """How the codes are packed that `found`, a quantization_config of gptq or awq, is about.

    Raises:
        CheckpointError: other bits, layouts or groups than those that are read.
    """
    method = found["quant_method"]
    bits = _bits(found, BITS[method], bool(found.get("dynamic")), where)
    layout = found.get("version", "gemm") if method == "awq" else found.get("checkpoint_format")
    layout = str(layout or "gptq").lower()
    if layout not in ("gemm", "gptq", "gptq_v2"):
        raise CheckpointError(
            f"{where}: expected {method} codes in the gemm, gptq or gptq_v2 layout, found "
            f"{quoted(layout)}; {WAY_OUT}"
        )
    own: Layout = "awq" if method == "awq" else "gptq"
    offset = int(layout == "gptq")
    group = group_of(found.get("group_size", -1), where)
    spread = own == "gptq" and found.get("desc_act") and group is not None
    also = dict.fromkeys(bits, ("g_idx",)) if spread else {}
    return Packing(method, own, bits, group, zero_offset=offset, also=also)


def autoround_packing(found: dict[str, Any], where: Path) -> Packing:
    """How the codes are packed that `found`, a quantization_config of auto-round, is about.

    Raises:
        CheckpointError: other bits, layouts or groups than those that are read.
    """
    form = str(found.get("packing_format") or found.get("backend")).lower()
    chosen = next((one for pattern, one in AUTOROUND.items() if form in pattern), None)
    if chosen is None or found.get("data_type", "int") != "int":
        raise refuse(where, found)
    for name in ("rotation_config", "hadamard_config"):
        if found.get(name):
            raise CheckpointError(
                f"{where}: expected weights as the model's, found a {name} of auto-round, which "
                f"turns them; {WAY_OUT}"
            )
    layout, offset = chosen
    bits = _bits(found, BITS[layout], bool(found.get("extra_config")), where)
    group = group_of(found.get("group_size", -1), where)
    rounded = found.get("act_bits", 16)
    notes: tuple[str, ...] = ()
    if isinstance(rounded, int) and rounded < 16:
        notes = (
            f"the checkpoint asks for activations rounded to {rounded} bits, which they are not",
        )
    return Packing("auto-round", layout, bits, group, zero_offset=offset, notes=notes)


def _bits(
    found: dict[str, Any], held: tuple[int, ...], mixed: bool, where: Path
) -> tuple[int, ...]:
    """Bits that codes may have: those that are told or, where some modules have others, any."""
    bits = found.get("bits")
    if bits not in held or isinstance(bits, bool):
        raise refuse(where, found)
    return held if mixed else (bits,)


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

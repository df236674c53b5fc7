"""What compressed-tensors says of its codes: config_groups, each with a scheme for some modules.

Which module has which scheme is read from the tensors themselves, so that `targets` and `ignore`
hold as they were stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from avl_export.checkpoint.packings.fp8 import block_of
from avl_export.checkpoint.packings.packing import WAY_OUT, Packing, refuse
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_plugins.errors import quoted, shown

MIXED = "mixed-precision"
# Formats, and the bits of whole numbers that they hold here.
FORMATS = {"pack-quantized": (4, 8), "int-quantized": (8,), "naive-quantized": (8,)}
FP8_FORMATS = ("float-quantized", "naive-quantized")
STRATEGIES = {"int": ("group", "channel", "tensor"), "float": ("channel", "tensor", "block")}
REPACKED = (3, 5, 6, 7)  # bits whose packing was changed between the library's versions
GROUPED = (True, "group", "dynamic")  # values of actorder that spread a group's inputs
METHOD = "compressed-tensors"


def compressed_packing(found: dict[str, Any], where: Path) -> Packing:
    """How the codes are packed that `found`, a quantization_config, is about.

    Raises:
        CheckpointError: another format than those that are read.
    """
    _check_whole(found, where)
    groups = found.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(
            f"{where}: expected config_groups in the quantization_config of {METHOD}, found "
            f"{quoted(groups, 40)}; fetch the checkpoint again"
        )
    schemes, weights, notes = [], list[dict[str, Any]](), dict[str, None]()
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise CheckpointError(
                f"{where}: expected a scheme written out in config_groups, found {shown(name, 40)}"
                f", the name of one; {WAY_OUT}"
            )
        if isinstance(group.get("weights"), dict):
            weights.append(group["weights"])
            schemes.append(_scheme(group, found, where))
        rounded = group.get("input_activations")
        if isinstance(rounded, dict):
            bits = f"{shown(rounded.get('num_bits'), 20)} bits"
            notes[f"the checkpoint asks for activations rounded to {bits}, which they are not"] = (
                None
            )
    blocks = {block for _, block in schemes if block is not None}
    if not schemes or len(blocks) > 1:
        raise refuse(where, found)
    return Packing(
        method=METHOD,
        layout="compressed",
        bits=tuple(sorted({bits for bits, _ in schemes})),
        block=next(iter(blocks), None),
        also=_also(weights),
        notes=tuple(notes),
    )


def _also(schemes: Iterable[Mapping[str, Any]]) -> Mapping[int, tuple[str, ...]]:
    """Of codes of so many bits, parts that those of each such scheme have."""
    found: dict[int, set[str]] = {}
    for one in schemes:
        if one.get("type", "int") == "int":
            wanted = {"weight_zero_point": one.get("symmetric") is False}
            wanted["weight_g_idx"] = one.get("actorder") in GROUPED
            parts = {part for part, wants in wanted.items() if wants}
            found[one["num_bits"]] = found.get(one["num_bits"], parts) & parts
    return {bits: tuple(sorted(parts)) for bits, parts in found.items()}


def _check_whole(found: Mapping[str, Any], where: Path) -> None:
    """Refuse what changes every weight, or leaves none as codes."""
    for name in ("sparsity_config", "transform_config"):
        part = found.get(name)
        if isinstance(part, dict) and any(part.values()) and part.get("format") != "dense":
            raise CheckpointError(
                f"{where}: expected quantized weights alone, found a {name} of {METHOD} too; "
                f"{WAY_OUT}"
            )
    status = found.get("quantization_status", "compressed")
    if status != "compressed":
        raise CheckpointError(
            f"{where}: expected a checkpoint that {METHOD} has compressed, found the status "
            f"{quoted(status)}; save it again with save_compressed=True"
        )


def _scheme(
    group: Mapping[str, Any], found: Mapping[str, Any], where: Path
) -> tuple[int, tuple[int, int] | None]:
    """The bits of one scheme's weights, and its blocks of outputs and inputs, if any."""
    weights, form = group["weights"], group.get("format") or found.get("format")
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    told = {"quant_method": METHOD, "format": form, "weights": {"num_bits": bits, "type": kind}}
    if form == "pack-quantized" and kind == "int" and bits in REPACKED:
        raise CheckpointError(
            f"{where}: expected codes of 4 or 8 bits, found {bits}, which versions of {METHOD} "
            f"before and since 0.18 pack differently under one name ("
            f"{shown(found.get('version') or 'this one tells no version', 40)}); {WAY_OUT}"
        )
    is_fp8 = kind == "float" and bits == 8 and form in FP8_FORMATS
    if not is_fp8 and (kind != "int" or bits not in FORMATS.get(str(form), ())):
        raise refuse(where, told)
    strategy = weights.get("strategy") or "group"
    if strategy not in STRATEGIES[kind]:
        raise CheckpointError(
            f"{where}: expected scales by {', '.join(STRATEGIES[kind])}, found "
            f"{quoted(strategy)}; {WAY_OUT}"
        )
    block = weights.get("block_structure") if strategy == "block" else None
    return int(bits), block_of(block, where)

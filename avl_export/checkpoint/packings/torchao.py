"""What torchao says of its weights: the name of a configuration, or of several for some modules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avl_export.checkpoint.packings.packing import Packing, refuse

# Configurations, and the bits of a code; None: as their weight_dtype says. Weights of these have
# codes of zero in all versions, those of Int8Tensor in later ones alone.
CONFIGS: dict[str, int | None] = {
    "Int8WeightOnlyConfig": 8,
    "Int8DynamicActivationInt8WeightConfig": 8,
    "IntxWeightOnlyConfig": None,
    "Int8DynamicActivationIntxWeightConfig": None,
    "Float8WeightOnlyConfig": 8,
    "Float8DynamicActivationFloat8WeightConfig": 8,
}
SEVERAL = ("FqnToConfig", "ModuleFqnToConfig")
UNROUNDED = "the checkpoint asks for activations rounded to 8 bits, which they are not"


def torchao_packing(found: dict[str, Any], where: Path) -> Packing:
    """How the weights are stored that `found`, a quantization_config of torchao, is about.

    Where some codes have 4 bits and others 8, all are taken for codes of 8 bits: torchao stores
    each as a byte.

    Raises:
        CheckpointError: another configuration than those that are read.
    """
    bits, uneven, notes = set[int](), set[bool](), tuple[str, ...]()
    for name, values in _configs(found.get("quant_type")):
        if name not in CONFIGS:
            raise refuse(where, found)
        held = CONFIGS[name]
        uneven.add(held is None)
        bits.add(_bits(values.get("weight_dtype")) if held is None else held)
        if "DynamicActivation" in name:
            notes = (UNROUNDED,)
    if not bits or 0 in bits:
        raise refuse(where, found)
    also = {max(bits): ("_weight_zero_point",)} if all(uneven) else {}
    return Packing("torchao", "torchao", (max(bits),), also=also, notes=notes)


def _configs(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and values of each configuration within `value`."""
    if not isinstance(value, dict):
        return
    name, values = value.get("_type"), value.get("_data")
    inner = values if isinstance(values, dict) else {}
    if isinstance(name, str) and name.endswith("Config") and name not in SEVERAL:
        yield name, inner
        return
    for part in value.values():
        yield from _configs(part)


def _bits(dtype: Any) -> int:
    """Bits that hold the codes of a weight_dtype such as int4; 0 for one that is none of those."""
    told = dtype.get("_data") if isinstance(dtype, dict) else None
    whole = re.fullmatch(r"int([1-8])", told) if isinstance(told, str) else None
    if whole is None:
        return 0
    return 4 if int(whole[1]) <= 4 else 8

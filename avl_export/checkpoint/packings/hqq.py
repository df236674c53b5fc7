"""What HQQ says of its weights; what each weight's codes are stands in its own tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avl_export.checkpoint.packings.packing import Packing, refuse

BITS = (4, 8)


def hqq_packing(found: dict[str, Any], where: Path) -> Packing:
    """How the weights are stored that `found`, a quantization_config of hqq, is about.

    Raises:
        CheckpointError: other bits than those that are read.
    """
    told = found.get("quant_config")
    several = told.values() if isinstance(told, dict) else ()
    # One configuration for all modules, or one for each kind of them.
    each = [told] if isinstance(told, dict) and "weight_quant_params" in told else [*several]
    params = [one.get("weight_quant_params", one) for one in each if isinstance(one, dict)]
    bits = [one.get("nbits") for one in params if isinstance(one, dict)]
    known = [one for one in bits if type(one) is int and one in BITS]
    if not bits or len(known) < len(bits):
        raise refuse(where, found)
    return Packing("hqq", "hqq", tuple(sorted(set(known))))

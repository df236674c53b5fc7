"""Quantized checkpoints of other tools, in words: what their quantization_config says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from avl_plugins.errors import shown

# Where tools put the number of bits, and what they call their formats.
BITS = ("bits", "num_bits", "nbits", "weight_bits", "w_bit", "wbits")
FORMATS = ("format", "fmt", "quant_algo", "quant_type", "_type", "weights", "packing_format")
FIRST = ("weights", "weight_quant_params")  # before what says the same of activations
DEEPEST = 6


def describe(found: dict[str, Any]) -> str:
    """Method, bits and format as far as they are said: fp8 (e4m3), torchao to 4 bits."""
    method = found.get("quant_method")
    for loaded in (4, 8):  # older configurations of bitsandbytes do not name it
        if found.get(f"load_in_{loaded}bit"):
            kind = found.get("bnb_4bit_quant_type") if loaded == 4 else None
            return _joined("bitsandbytes", loaded, kind)
    if method is None and "bits" in found and "group_size" in found:
        return _joined("MLX", found["bits"], found.get("mode"))
    if method is None:
        return "a method that quantization_config does not name"
    values = list(_values(found, DEEPEST))
    bits = next((v for k, v in values if k in BITS and type(v) is int), None)
    kind = next((v for k, v in values if k in FORMATS and isinstance(v, str)), None)
    return _joined(method, bits, kind)


def _joined(method: Any, bits: Any, kind: Any) -> str:
    name = shown(method, 40)
    if bits is not None:
        name += f" to {shown(bits, 20)} bits"
    if isinstance(kind, str) and kind.lower() != str(method).lower():
        name += f" ({shown(kind, 40)})"
    return name


def _values(found: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Keys and values at all depths, those that are about weights first."""
    if not isinstance(found, dict) or not depth:
        return
    for key in sorted(found, key=lambda key: key not in FIRST):
        yield key, found[key]
        yield from _values(found[key], depth - 1)

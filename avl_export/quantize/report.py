"""What a planned quantization says of itself: to people, and to the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from avl_export.checkpoint.places import QuantizedPlace
from avl_runtime.package.quantization import Quantization, RowScales

if TYPE_CHECKING:  # the command line needs lines for people, and torch only once it has a plan
    from avl_export.quantize.store import Store


def quantization_report(store: Store | None) -> dict[str, Any] | None:
    """The plan as a JSON object: what, how, bytes before and after, what stays as it is.

    None where no weight is quantized.
    """
    if store is None or store.spec is None:
        return None
    spec, quantized = store.spec, store.quantized
    return {
        "method": spec.method,
        "bits": spec.bits,
        "block_size": spec.block,
        "parts": list(store.parts),
        "zero_points": store.has_zeros,
        "tensors": len(quantized),
        "bytes_before": sum(store.sources[name].nbytes for name in dict(quantized)),
        "bytes_after": sum(place.nbytes for _, place in quantized),
        "kept": dict(store.kept),
        "kept_in": _kept_in(store),
        "fitting_block_size": store.fitting,
        "files": {file.name: file.nbytes for file in store.files},
    }


def kept_lines(kept: Mapping[str, str], kept_in: Sequence[str]) -> list[str]:
    """What is stored in floating point and why, a line for each reason.

    Args:
        kept: why, by the weight's name.
        kept_in: the dtypes.
    """
    reasons = Counter(kept.values())
    where = " and ".join(kept_in)
    return [
        f"not quantized, stored in {where}: {count} weights whose {why}"
        for why, count in reasons.items()
    ]


def notes(store: Store | None) -> tuple[str, ...]:
    """Lines about weights that were codes and of which none is left."""
    if store is None or store.spec is not None:
        return ()
    return tuple(kept_lines(store.kept, _kept_in(store)))


def _kept_in(store: Store) -> list[str]:
    return sorted({store.plain[name].record.dtype for name in store.kept})


def manifest_entry(store: Store | None) -> Quantization | None:
    """The manifest's entry, None where no weight is quantized."""
    if store is None or store.spec is None:
        return None
    spec, rows = store.spec, dict(store.rows)
    embedding = rows.pop(store.embedding, None)
    (other,) = rows.values() or (None,)
    return Quantization(
        method=spec.method,
        bits=spec.bits,
        block_size=spec.block,
        parts=store.parts,
        zero_points=store.has_zeros,
        embedding=_row_scales(embedding),
        layer_table=_row_scales(other),
    )


def _row_scales(place: QuantizedPlace | None) -> RowScales | None:
    if place is None:
        return None
    return RowScales(
        offset=place.scales.offset,
        dtype=cast(Literal["F32", "F16", "BF16"], place.scales.dtype),
        block_size=place.block or place.shape[1],
    )

"""Read quantized weights back from a package, as the floats they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avl_export.checkpoint.places import QuantizedPlace
from avl_export.checkpoint.safetensors_header import TensorRecord
from avl_export.checkpoint.source import Floats, Source
from avl_export.quantize.blocks import Codes, dequantize
from avl_runtime.package.quantization import unpack_int4

_BYTES: dict[str, np.dtype[Any]] = {"U8": np.dtype(np.uint8), "I8": np.dtype(np.int8)}


def read_weight(folder: Path, place: QuantizedPlace) -> Floats:
    """The weight that lies at `place` in `folder`, of its shape, dequantized to float32."""
    codes = _codes(folder, place, place.codes)
    source = Source(place.location, folder / place.location, place.scales)
    scales = source.read_floats(0, place.scales.shape[0])
    if place.by_rows:
        return dequantize(codes, scales.reshape(-1, scales.shape[-1])).reshape(place.shape)
    zeros = None
    if place.zeros is not None:
        zeros = _codes(folder, place, place.zeros).reshape(-1, place.shape[0]).T
    return dequantize(codes.T, scales.reshape(-1, place.shape[0]).T, zeros)


def _codes(folder: Path, place: QuantizedPlace, record: TensorRecord) -> Codes:
    stored: npt.NDArray[Any] = np.fromfile(
        folder / place.location, _BYTES[record.dtype], record.nbytes, offset=record.offset
    ).reshape(record.shape)
    return unpack_int4(stored) if place.bits == 4 else stored

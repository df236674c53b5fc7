"""Write a planned store: tensor after tensor, experts one by one, never whole in floating point."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avl_export.checkpoint.places import QuantizedPlace
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_export.checkpoint.source import PIECE, Floats, Source, pieces, stored_bytes
from avl_export.quantize.blocks import Codes, Method, quantize
from avl_export.quantize.codes import StoredCodes
from avl_export.quantize.layout import File
from avl_export.quantize.packing import pack_int4
from avl_export.quantize.store import Store
from avl_runtime.machine.resources import cores
from avl_runtime.package.package import Shard
from avl_runtime.package.shard_files import describe

Step = Callable[[str, int], None]
METHODS: dict[str, Method] = {"rtn": "rtn", "clip": "clip", "hqq": "hqq"}


def write_store(store: Store, folder: Path, step: Step) -> tuple[Shard, ...]:
    """Write the files of `store` into `folder`.

    Args:
        step: called with what is being done and how many bytes have been written.

    Raises:
        CheckpointError: a weight is not finite, or a tensor has changed since it was planned.
        OSError: the disk is full.
    """
    *quantized, plain = store.files
    verb = "taking over" if _is_packed(store) else "quantizing"
    label = f"{verb} weights"
    return (
        *(_write(file, folder, _quantized(store), label, step) for file in quantized),
        _write(plain, folder, _plain(store), "copying other weights", step),
    )


def _is_packed(store: Store) -> bool:
    return any(isinstance(source, StoredCodes) for source in store.sources.values())


def _write(file: File, folder: Path, data: Iterator[bytes], label: str, step: Step) -> Shard:
    target = folder / file.name
    digest = hashlib.sha256(file.header)
    with target.open("xb") as writer:
        writer.write(file.header)
        for piece in data:
            writer.write(piece)
            digest.update(piece)
            step(label, len(piece))
    size = target.stat().st_size
    if size != file.nbytes:
        raise RuntimeError(f"{file.name}: planned {file.nbytes} bytes, wrote {size}")
    return describe(target, file.name, digest.hexdigest(), linked=False)


def _plain(store: Store) -> Iterator[bytes]:
    for plain in store.plain.values():
        yield from pieces(plain.source, plain.record.dtype)


def _quantized(store: Store) -> Iterator[bytes]:
    """Scales, zeros and codes of every quantized tensor, in the order of the file."""
    with ThreadPoolExecutor(cores()) as pool:
        for name, place in store.quantized:
            source = store.sources[name]
            if isinstance(source, StoredCodes):
                yield stored_bytes(source.read_scales(), place.scales.dtype)
                zeros = source.read_zeros()
                if zeros is not None:
                    yield (pack_int4(zeros) if place.bits == 4 else zeros).tobytes()
                yield from source.pieces()
            elif len(place.shape) == 3:
                yield from _stack(source, place, store, pool)
            elif place.by_rows:
                yield from _table(source, place, store, pool)
            else:
                codes, scales = _quantize(source, place, store, pool)
                yield stored_bytes(scales, place.scales.dtype)
                yield from _slices(codes)


def _quantize(
    source: Source, place: QuantizedPlace, store: Store, pool: ThreadPoolExecutor
) -> tuple[npt.NDArray[Any], Floats]:
    """Codes and scales of a whole tensor, as they are stored.

    Rows are independent of each other, so that threads take some each: NumPy lets go of Python's
    lock while it computes.
    """
    outputs, inputs = place.shape
    codes = np.empty(place.codes.shape, np.uint8 if place.bits == 4 else np.int8)
    scales = np.empty(place.scales.shape, np.float32)

    def rows(first: int) -> None:
        last = min(first + step, outputs)
        part, part_scales = _codes(source, source.read_floats(first, last), place, store)
        _place_rows(place, first, last, part, part_scales, codes, scales)

    step = _step(inputs)
    for _ in pool.map(rows, range(0, outputs, step)):
        pass
    return codes, scales


def _stack(
    source: Source, place: QuantizedPlace, store: Store, pool: ThreadPoolExecutor
) -> Iterator[bytes]:
    """Codes of one expert after another, then all scales, as they are stored."""
    count, outputs, inputs = place.shape
    scales = np.empty(place.scales.shape, np.float32)

    def expert(number: int) -> npt.NDArray[Any]:
        (weights,) = source.read_floats(number, number + 1)
        codes = np.empty(place.codes.shape[1:], np.uint8 if place.bits == 4 else np.int8)
        for first in range(0, outputs, step):
            last = min(first + step, outputs)
            part, part_scales = _codes(source, weights[first:last], place, store)
            _place_rows(place, first, last, part, part_scales, codes, scales[number])
        return codes

    step = _step(inputs)
    # No more than a few at a time, as codes wait in memory until they are written.
    for first in range(0, count, cores()):
        for codes in pool.map(expert, range(first, min(first + cores(), count))):
            yield codes.tobytes()
    yield stored_bytes(scales, place.scales.dtype)


def _table(
    source: Source, place: QuantizedPlace, store: Store, pool: ThreadPoolExecutor
) -> Iterator[bytes]:
    """Codes of some rows after others, then all scales, as they are stored."""
    rows, columns = place.shape
    scales = np.empty(place.scales.shape, np.float32)

    def some(first: int) -> npt.NDArray[Any]:
        last = min(first + step, rows)
        part, scales[first:last] = _codes(source, source.read_floats(first, last), place, store)
        return pack_int4(part) if place.bits == 4 else part

    step = _step(columns)
    # No more than a few at a time, as codes wait in memory until they are written.
    for first in range(0, rows, step * cores()):
        for codes in pool.map(some, range(first, min(first + step * cores(), rows), step)):
            yield codes.tobytes()
    yield stored_bytes(scales, place.scales.dtype)


def _step(inputs: int) -> int:
    """Rows that are quantized at a time: an even number, as two outputs may share a byte."""
    return max(1, PIECE // 16 // (2 * inputs)) * 2


def _codes(
    source: Source, weights: Floats, place: QuantizedPlace, store: Store
) -> tuple[Codes, Floats]:
    """Codes and scales of some rows of `source`.

    Raises:
        CheckpointError: a weight is not finite, or too large for the scales' dtype.
    """
    if store.spec is None:
        raise RuntimeError("a store without quantized weights")
    method, scale_dtype = METHODS[store.spec.method], store.spec.scale_dtype
    block = place.block or place.shape[-1]
    with np.errstate(all="ignore"):  # what is not finite is found below
        codes, scales = quantize(weights, place.bits, block, method, scale_dtype)
    if not np.isfinite(scales).all():
        raise CheckpointError(
            f"{source.path}: {source.key}: expected finite weights within the range of "
            f"{scale_dtype}, found others; fetch the checkpoint again or pass --dtype fp32"
        )
    return codes, scales


def _place_rows(
    place: QuantizedPlace,
    first: int,
    last: int,
    part: Codes,
    part_scales: Floats,
    codes: npt.NDArray[Any],
    scales: Floats,
) -> None:
    """Store the rows `first` to `last` - 1, quantized, in the tensor's arrays."""
    if place.by_rows:  # of an expert
        codes[first:last] = pack_int4(part) if place.bits == 4 else part
        scales[first:last] = part_scales
        return
    turned = part.T
    if place.bits == 4:
        codes[:, first // 2 : last // 2] = pack_int4(turned)
    else:
        codes[:, first:last] = turned
    scales[..., first:last] = part_scales.T if place.block is not None else part_scales[:, 0]


def _slices(codes: npt.NDArray[Any]) -> Iterator[bytes]:
    step = max(1, PIECE // codes.shape[1])
    for first in range(0, len(codes), step):
        yield codes[first : first + step].tobytes()

"""Read and check a safetensors header without reading a single weight.

A file is 8 bytes of header length (little-endian), a JSON header that names each tensor with its
dtype, shape and byte range, and the data those ranges must cover. Graphs point straight into the
data, so a header that lies would make an engine read past a tensor: every claim is checked.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError, quoted
from avl_runtime.package.package import HEADER_LIMIT

ITEM_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}
FETCH_AGAIN = "fetch the checkpoint again"
POINTER = b"version https://git-lfs.github.com/"  # what git leaves of a large file without Git LFS


class CheckpointError(AvlError):
    """A checkpoint is missing, damaged, or not of a kind that can be exported."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One stored tensor; `offset` counts bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorRecord]:
    """Tensors of the safetensors file at `path` by name.

    Raises:
        CheckpointError: the file is truncated, or its header is not one a safetensors file of
            this size can have.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            check_pointer(file.read(len(POINTER)), path)
            file.seek(0)
            field = file.read(8)
            length = int.from_bytes(field, "little")
            if len(field) < 8 or length > min(HEADER_LIMIT, size - 8):
                raise CheckpointError(
                    f"{path}: expected a safetensors header within {size} bytes, "
                    f"found a header length of {length}; {FETCH_AGAIN}"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(
            f"{path}: expected a readable safetensors file, found {error.strerror}; {FETCH_AGAIN}"
        ) from None
    return parse_header(text, size - 8 - length, str(path))


def check_pointer(begin: bytes, path: Path) -> None:
    """Refuse the file at `path` if it begins as a pointer of Git LFS.

    Raises:
        CheckpointError: it does.
    """
    if begin.startswith(POINTER):
        raise CheckpointError(
            f"{path}: expected the file itself, found a pointer that git without Git LFS left in "
            "its place; run 'git lfs pull' in its folder, or fetch the repository with "
            "'hf download'"
        )


def parse_header(text: bytes, data_size: int, where: str) -> dict[str, TensorRecord]:
    """Parse the header `text` of a file whose data part has `data_size` bytes.

    Raises:
        CheckpointError: anything but tensors whose byte ranges fit their dtype and shape, lie
            within the data, do not overlap and leave no gaps.
    """
    try:
        raw = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: expected a JSON header, found {error}; {FETCH_AGAIN}"
        ) from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{where}: expected a JSON object as header; {FETCH_AGAIN}")
    start = 8 + len(text)
    records = {
        name: _record(entry, start, data_size, f"{where}: {name}")
        for name, entry in raw.items()
        if name != "__metadata__"
    }
    end, before = start, "the header"
    for name, record in sorted(records.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if record.offset != end:
            kind = "an overlap" if record.offset < end else "a gap"
            raise CheckpointError(
                f"{where}: {name}: expected to start where {before} ends, at byte {end}, "
                f"found {kind} (byte {record.offset}); {FETCH_AGAIN}"
            )
        end, before = record.offset + record.nbytes, name
    if end != start + data_size:
        raise CheckpointError(
            f"{where}: expected {end} bytes as its header says, found {start + data_size}; "
            f"{FETCH_AGAIN}"
        )
    return records


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same name twice")
    return found


def _record(entry: Any, start: int, data_size: int, where: str) -> TensorRecord:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{where}: expected dtype, shape and data_offsets, found {str(entry)[:60]}; "
            f"{FETCH_AGAIN}"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise CheckpointError(
            f"{where}: expected a dtype of {', '.join(ITEM_BITS)}, found {quoted(str(dtype), 22)}; "
            "save the checkpoint in fp32, fp16 or bf16"
        )
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"{where}: expected a shape and two offsets of whole numbers, "
            f"found {str(shape)[:40]} and {str(offsets)[:40]}; {FETCH_AGAIN}"
        )
    begin, end = offsets
    if not begin <= end <= data_size:
        raise CheckpointError(
            f"{where}: expected bytes within the {data_size} that the file holds, "
            f"found {begin} to {end}; the file is cut short or damaged, {FETCH_AGAIN}"
        )
    expected = math.prod(shape) * ITEM_BITS[dtype] // 8
    if end - begin != expected:
        raise CheckpointError(
            f"{where}: expected {expected} bytes for {dtype} {list(shape)}, "
            f"found {end - begin}; {FETCH_AGAIN}"
        )
    return TensorRecord(dtype, tuple(shape), start + begin, end - begin)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63 for n in value
    )

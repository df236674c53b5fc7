"""The safetensors files of a package with quantized weights, laid out before they are written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from avl_export.checkpoint.safetensors_header import ITEM_BITS, TensorRecord

ALIGNMENT = 8  # bytes; of the data that follows a header, as the safetensors library writes it


@dataclass(frozen=True, slots=True)
class File:
    """A file to be written: its header, and the tensors in the order of their bytes."""

    name: str
    header: bytes
    tensors: Mapping[str, TensorRecord]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return len(self.header) + sum(record.nbytes for record in self.tensors.values())


@dataclass(slots=True)
class FileLayout:
    """Collects the tensors of one file."""

    name: str
    metadata: Mapping[str, str]
    wanted: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    def add(self, tensor: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Append a tensor."""
        if tensor in self.wanted:
            raise RuntimeError(f"{tensor}: laid out twice")
        self.wanted[tensor] = (dtype, shape)

    def finish(self) -> File:
        """Place every tensor; offsets count from the start of the file."""
        entries: dict[str, object] = {"__metadata__": dict(self.metadata)}
        end = 0
        for tensor, (dtype, shape) in self.wanted.items():
            begin, end = end, end + math.prod(shape) * ITEM_BITS[dtype] // 8
            entries[tensor] = {
                "dtype": dtype,
                "shape": list(shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        header = len(text).to_bytes(8, "little") + text
        records, offset = {}, len(header)
        for tensor, (dtype, shape) in self.wanted.items():
            nbytes = math.prod(shape) * ITEM_BITS[dtype] // 8
            records[tensor] = TensorRecord(dtype, shape, offset, nbytes)
            offset += nbytes
        return File(self.name, header, records)

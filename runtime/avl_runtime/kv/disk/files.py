"""A block of a prompt's rows as a safetensors file that is read only if it is what was expected.

Whoever reads one knows its key, the types and shapes of its arrays and so its size, and all of its
header but the hash of its data. Nothing in the file is believed: it has the size that was expected,
its data the hash that is in its header, and its header is the very one that would be written.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from avl_runtime.kv.cache import Array
from avl_runtime.kv.prefixes import Block

FORMAT: Final = "avl-prefix-1"
DTYPES: Final = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8"}
ALIGNMENT: Final = 8  # bytes; of the data behind a header, as the safetensors library writes it
# Links are not followed, and a pipe is not waited for; of what there is on this system.
FLAGS: Final = sum(
    getattr(os, name, 0)
    for name in ("O_RDONLY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_NOINHERIT")
)


class ForeignFileError(Exception):
    """A file is not the one that was written, or is not whole."""


def size_of(key: bytes, whose: str, block: Block) -> int:
    """Bytes of a block's file; of its arrays only types and shapes are read."""
    return len(_header(key, whose, block, b"")) + block.nbytes


def write(file: BinaryIO, key: bytes, whose: str, block: Block) -> None:
    """Write a block.

    Args:
        key: of the block.
        whose: of all that rows depend on beside the key, a hash.
    """
    parts = [np.ascontiguousarray(array).data.cast("B") for array in _parts(block).values()]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    file.write(_header(key, whose, block, digest.digest()))
    for part in parts:
        file.write(part)


def read(path: Path, key: bytes, whose: str, pattern: Block) -> Block:
    """Read a block.

    Args:
        pattern: a block of the form that is expected, whose arrays hold anything.

    Raises:
        ForeignFileError: another file is there, or a part of one.
        OSError: none is there, or it cannot be read.
    """
    with os.fdopen(os.open(path, FLAGS), "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        whole = size_of(key, whose, pattern)
        if not stat.S_ISREG(found.st_mode) or found.st_size != whole:
            raise ForeignFileError
        data = np.empty(whole, np.uint8)
        filled = 0
        while filled < whole:
            count = file.readinto(data.data[filled:])
            if not count:
                raise ForeignFileError
            filled += count
    begin = whole - pattern.nbytes
    digest = hashlib.sha256(data.data[begin:]).digest()
    if data[:begin].tobytes() != _header(key, whose, pattern, digest):
        raise ForeignFileError
    data.flags.writeable = False
    arrays = {}
    for name, array in _parts(pattern).items():
        part = data[begin : begin + array.nbytes]
        arrays[name] = part.view(array.dtype).reshape(array.shape)
        begin += array.nbytes
    return _block(arrays, pattern)


def _parts(block: Block) -> dict[str, Array]:
    """A block's arrays by name, in the order in which they lie in a file.

    Wider elements come first, so that each array lies where its own can be read.
    """
    found = {
        f"rows.{segment}.{plane}": array
        for segment, planes in enumerate(block.rows)
        for plane, array in enumerate(planes)
    }
    found |= {
        f"states.{segment}.{number}": array
        for segment, states in enumerate(block.states)
        for number, array in enumerate(states)
    }
    found |= {f"mass.{segment}": array for segment, array in enumerate(block.mass)}
    if block.hidden is not None:
        found["hidden"] = block.hidden
    return dict(sorted(found.items(), key=lambda one: -one[1].itemsize))


def _block(arrays: Mapping[str, Array], pattern: Block) -> Block:
    """What `_parts` has taken apart, of a block of the pattern's form."""

    def of(kind: str, segments: Sequence[Sequence[Array]]) -> tuple[tuple[Array, ...], ...]:
        return tuple(
            tuple(arrays[f"{kind}.{segment}.{number}"] for number in range(len(held)))
            for segment, held in enumerate(segments)
        )

    mass = tuple(arrays[f"mass.{segment}"] for segment in range(len(pattern.mass)))
    rows, states = of("rows", pattern.rows), of("states", pattern.states)
    return Block(rows, mass, arrays.get("hidden"), states)


def _header(key: bytes, whose: str, block: Block, digest: bytes) -> bytes:
    """The length field and the header; as long with any hash."""
    marks = {"format": FORMAT, "key": key.hex(), "of": whose, "sha256": digest.hex().ljust(64)}
    entries: dict[str, object] = {"__metadata__": marks}
    end = 0
    for name, array in _parts(block).items():
        begin, end = end, end + array.nbytes
        entries[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text

"""Files of weights as an export saw them, and whether they still are what they were.

Reading gigabytes at every load takes too long, and size and header stay as they are when a model is
trained on. So an export notes a hash of a sample: a block of each tensor and blocks spread over the
file. Training changes nearly every weight of a tensor, and so any block of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from avl_runtime.machine.sizes import size_text
from avl_runtime.package.manifest import MANIFEST, PackageError, Shard

HEADER_LIMIT = 100 << 20  # bytes; what safetensors itself allows
HALVES = ("F16", "BF16")
BLOCK = 4096  # bytes; what a disk reads at once
SPREAD = 64  # blocks spread evenly over a file, the first and the last among them
MOST_TENSORS = 4096  # of which a block is read; of more, evenly many are left out


@dataclass(slots=True)
class Compared:
    """What a check compared.

    Attributes:
        whole: bytes of files that were read whole.
        sampled: bytes of files of which a sample was read, `sample` bytes in all.
        touched: files whose time of modification is another than at export.
    """

    whole: int = 0
    sampled: int = 0
    sample: int = 0
    touched: int = 0

    def text(self) -> str:
        """One line for people."""
        parts = []
        if self.whole:
            parts.append(f"{size_text(self.whole)} of weights read and found unchanged")
        if self.sampled:
            when = f"{self.touched} of its files" if self.touched else "no file"
            parts.append(
                f"a sample of {size_text(self.sample)} of {size_text(self.sampled)} of weights "
                f"found unchanged, {when} modified since export; to compare every byte, export "
                "with --hash-weights"
            )
        return "; ".join(parts) or "no weights to compare"


def check_file(path: Path, shard: Shard, whole: bool, compared: Compared) -> None:
    """Check that `path` is the file that an export saw.

    Args:
        whole: read all of it, where its SHA-256 is recorded.
        compared: is told what was compared.

    Raises:
        PackageError: it is missing or another one; or with `whole`, nothing of it is recorded.
    """
    if not path.is_file():
        raise PackageError(
            f"{path}: expected the weights this package is linked to, found none; "
            "put the checkpoint back, or export with --copy to make a package movable"
        )
    stat = path.stat()
    if stat.st_size != shard.size:
        raise PackageError(
            f"{path}: expected {shard.size} bytes, found {stat.st_size}; "
            "the checkpoint has changed since export, export again"
        )
    if header_sha256(path) != shard.header_sha256:
        raise PackageError(
            f"{path}: expected the safetensors header seen at export, found another; "
            "the checkpoint has changed since export, export again"
        )
    touched = shard.modified_ns is not None and stat.st_mtime_ns != shard.modified_ns
    if whole and shard.sha256 is None and shard.sample_sha256 is None:
        raise PackageError(
            f"{path}: expected its SHA-256 in {MANIFEST}, found none; export with --hash-weights"
        )
    if whole and shard.sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.sha256:
            raise PackageError(
                f"{path}: expected SHA-256 {shard.sha256[:12]}…, found {found[:12]}…; "
                "the weights have changed since export, fetch them again or export again"
            )
        compared.whole += stat.st_size
    elif shard.sample_sha256 is not None:
        sample, nbytes = _sample(path)
        if sample != shard.sample_sha256:
            when = "a file modified since then" if touched else "a file as old as that one"
            raise PackageError(
                f"{path}: expected the weights seen at export, found others in {when}; the "
                "weights have changed since export, fetch them again or export again"
            )
        compared.sampled += stat.st_size
        compared.sample += nbytes
        compared.touched += touched


def describe(path: Path, location: str, sha256: str | None, linked: bool) -> Shard:
    """What a manifest says of the safetensors file at `path`.

    Args:
        location: as graphs name it.
        sha256: of the whole file, None if nobody asked for it.
        linked: whether the file stays where it is, so that its time tells something.
    """
    stat = path.stat()
    return Shard(
        path=location,
        size=stat.st_size,
        header_sha256=header_sha256(path),
        sha256=sha256,
        modified_ns=stat.st_mtime_ns if linked else None,
        sample_sha256=_sample(path)[0],
    )


def header_sha256(path: Path) -> str:
    """SHA-256 of a safetensors file's length field and header."""
    return hashlib.sha256(b"".join(_header(path))).hexdigest()


def float32_bytes(path: Path) -> int:
    """Bytes of all tensors where 16-bit floats have become float32."""
    return sum(
        (end - begin) * (2 if dtype in HALVES else 1) for dtype, begin, end in _tensors(path)
    )


def _sample(path: Path) -> tuple[str, int]:
    """SHA-256 of a sample of the file, and the bytes that it reads."""
    size = path.stat().st_size
    start = sum(map(len, _header(path)))
    tensors = sorted((begin, end) for _, begin, end in _tensors(path))
    step = -(-len(tensors) // MOST_TENSORS) or 1
    last = max(0, size - BLOCK)
    offsets = {last * number // (SPREAD - 1) for number in range(SPREAD)}
    for begin, end in tensors[::step]:
        middle = start + (begin + end) // 2
        offsets.add(min(max(middle - BLOCK // 2, start + begin), last))
    digest, nbytes = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        for offset in sorted(offsets):
            file.seek(offset)
            block = file.read(BLOCK)
            digest.update(block)
            nbytes += len(block)
    return digest.hexdigest(), nbytes


def _tensors(path: Path) -> Iterable[tuple[str, int, int]]:
    """Dtype and range of every tensor; ranges count from the end of the header."""
    try:
        entries = json.loads(_header(path)[1])
        found = [(key, entries[key]) for key in entries if key != "__metadata__"]
        return [(str(e["dtype"]), *_range(e["data_offsets"])) for _, e in found]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise PackageError(
            f"{path}: expected a safetensors header, found something else; fetch the checkpoint "
            "again"
        ) from None


def _range(value: object) -> tuple[int, int]:
    if not isinstance(value, list):
        raise TypeError
    begin, end = value
    if isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end:
        return begin, end
    raise ValueError


def _header(path: Path) -> tuple[bytes, bytes]:
    """A safetensors file's length field and its header, which is JSON."""
    with path.open("rb") as file:
        length_field = file.read(8)
        length = int.from_bytes(length_field, "little")
        if len(length_field) < 8 or length > min(HEADER_LIMIT, path.stat().st_size - 8):
            raise PackageError(
                f"{path}: expected a safetensors header, found a length of {length} bytes "
                "that the file cannot hold; fetch the checkpoint again"
            )
        return length_field, file.read(length)

"""The weights of a package: the checkpoint's own files, linked or copied."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from avl_export.progress import Progress
from avl_runtime.package.package import Shard
from avl_runtime.package.shard_files import describe

CHUNK = 8 << 20  # bytes read at a time


def link_shards(files: Mapping[str, Path], whole: bool) -> tuple[Shard, ...]:
    """Pin `files` (by location, as graphs name them) where they lie.

    Args:
        whole: hash all of each file, not just its header and a sample.
    """
    progress = Progress(sum(path.stat().st_size for path in files.values()) if whole else 0)
    shards = []
    for location, path in files.items():
        digest = _read(path, None, progress, f"hashing {path.name}") if whole else None
        shards.append(describe(path, location, digest, linked=True))
    progress.close()
    return tuple(shards)


def copy_shards(files: Mapping[str, Path], folder: Path) -> tuple[Shard, ...]:
    """Copy `files` into `folder`, each to its location, and hash them on the way."""
    progress = Progress(sum(path.stat().st_size for path in files.values()))
    shards = []
    for location, source in files.items():
        target = folder / location
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = _read(source, target, progress, f"copying {location}")
        shards.append(describe(target, location, digest, linked=False))
    progress.close()
    return tuple(shards)


def _read(source: Path, target: Path | None, progress: Progress, label: str) -> str:
    """SHA-256 of `source`, which is copied to `target` if there is one."""
    digest = hashlib.sha256()
    with source.open("rb") as reader:
        writer = None if target is None else target.open("xb")
        try:
            while block := reader.read(CHUNK):
                if writer is not None:
                    writer.write(block)
                digest.update(block)
                progress.step(label, len(block))
        finally:
            if writer is not None:
                writer.close()
    return digest.hexdigest()

"""Copies of a package, for machines that do not see its folder.

The machine that has the package hands out its files in pieces. A copy is a folder named after the
manifest, which pins all other files, and takes its place when it is whole.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from avl_plugins.errors import shown
from avl_runtime.machine.sizes import size_text
from avl_runtime.package.package import MANIFEST, load_package
from avl_runtime.package.staging import stage_of, sweep
from avl_runtime.serve.batch.run import BatchError

PIECE: Final = 16 << 20  # bytes that are sent at one time
PACKAGE: Final = "package"
WEIGHTS: Final = "weights"  # what packages link to, beside them
Fetch = Callable[[int, int], bytes]  # number of a file, byte to begin at


@dataclass(frozen=True, slots=True)
class Listed:
    """What a copy holds.

    Attributes:
        sha256: of the manifest.
        linked: whether weights lie outside of the package.
        files: places in the copy and bytes, the manifest first.
    """

    sha256: str
    linked: bool
    files: tuple[tuple[str, int], ...]


class Source:
    """A package that is copied, where it lies."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            AvlError: it is no package, or its weights are not those of the export.
        """
        package = load_package(folder)
        package.check_shards()
        manifest = package.manifest
        names = [entry.path for entry in manifest.files]
        names += [file.path for one in manifest.engines for file in one.files]
        self._linked = manifest.weights.folder is not None
        beside = WEIGHTS if self._linked else PACKAGE
        self._paths = {f"{PACKAGE}/{MANIFEST}": package.file(MANIFEST)}
        for name in names:
            self._paths[f"{PACKAGE}/{name}"] = package.file(name)
        for shard in manifest.weights.shards:
            self._paths[f"{beside}/{shard.path}"] = package.weights_folder / shard.path

    def listed(self) -> Listed:
        """What a copy will hold."""
        first = next(iter(self._paths.values()))
        sizes = tuple((place, path.stat().st_size) for place, path in self._paths.items())
        return Listed(hashlib.sha256(first.read_bytes()).hexdigest(), self._linked, sizes)

    def piece(self, number: int, start: int) -> bytes:
        """At most `PIECE` bytes of a file of `Listed.files`."""
        with list(self._paths.values())[number].open("rb") as file:
            file.seek(start)
            return file.read(PIECE)


def copied(folder: Path, listed: Listed, fetch: Fetch) -> Path:
    """A package's folder in its copy, which is made where there is none yet.

    Args:
        folder: where copies lie, on a disk of this machine alone.
        fetch: as `Source.piece`.

    Raises:
        BatchError: the folder cannot be written or has no room, or files change meanwhile.
    """
    place = folder / listed.sha256[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{place.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another worker of this machine may be at it
            if not place.is_dir():
                _make(place, listed, fetch)
    except OSError as error:
        raise BatchError(
            f"--copy-to {shown(folder)}: expected a folder that can be written on each machine, "
            f"found: {error.strerror}; name another"
        ) from None
    return place / PACKAGE


def _make(place: Path, listed: Listed, fetch: Fetch) -> None:
    sweep(place.parent, place.name)
    wanted = sum(size for _, size in listed.files)
    free = shutil.disk_usage(place.parent).free
    if wanted > free:
        raise BatchError(
            f"--copy-to {shown(place.parent)}: expected room for {size_text(wanted)}, found "
            f"{size_text(free)}; name a folder on a larger disk"
        )
    stage = stage_of(place)
    try:
        for number, (name, size) in enumerate(listed.files):
            _write(stage / name, size, number, fetch)
        if listed.linked:
            _settle(stage / PACKAGE, place / WEIGHTS)
        stage.rename(place)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _write(path: Path, size: int, number: int, fetch: Fetch) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        while file.tell() < size:
            piece = fetch(number, file.tell())
            if not piece or file.tell() + len(piece) > size:
                raise BatchError(
                    f"expected {size} bytes of {path.name}, found other ones; the package has "
                    "changed while it was copied, begin again with --resume"
                )
            file.write(piece)


def _settle(package: Path, weights: Path) -> None:
    """Lead a copy to its own weights, which loading compares with what the export saw."""
    manifest = load_package(package).manifest
    shards = tuple(dataclasses.replace(one, modified_ns=None) for one in manifest.weights.shards)
    there = dataclasses.replace(manifest.weights, folder=str(weights), shards=shards)
    moved = dataclasses.replace(manifest, weights=there)
    (package / MANIFEST).write_text(moved.to_json(), encoding="utf-8")

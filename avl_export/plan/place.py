"""Where a package goes: what lies there already, and how the new one takes its place.

A package there is replaced. What else lies in its folder, files that its manifest does not know and
engines, is somebody's work: it is named, and stays unless the user says otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError, shown
from avl_runtime.machine.sizes import size_text
from avl_runtime.package.package import MANIFEST, MANIFEST_LIMIT
from avl_runtime.package.staging import is_left_behind, stage_of, sweep

INSIDE = "package"  # what stages are named after in a folder that is there already
NAMED = 3  # things that a refusal names one by one
LONGEST = 60  # characters of a name or a path below the folder


class ExportError(AvlError):
    """The package could not be written."""


@dataclass(frozen=True, slots=True)
class Found:
    """What lies where a package shall go.

    Attributes:
        package: whether a package does.
        others: what else, in words: sets of engines, files, folders.
    """

    package: bool
    others: tuple[str, ...] = ()

    def text(self) -> str:
        """The first few of `others`."""
        named = ", ".join(self.others[:NAMED])
        more = len(self.others) - NAMED
        return f"{named} and {more} more" if more > 0 else named


def examine(out: Path, sources: Iterable[Path] = ()) -> Found:
    """What lies at `out`.

    Args:
        sources: folders and files that the export reads.

    Raises:
        ExportError: something else than an empty folder or a package, or what the export reads.
    """
    where = shown(out)
    try:
        place = out.resolve()
        is_folder = place.is_dir()
        is_taken = is_folder or place.exists()
        entries = [e for e in place.iterdir() if not _is_stage(e)] if is_folder else []
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "one that leads nowhere"
        raise ExportError(
            f"{where}: expected a place for a package, found {reason}; choose another --out"
        ) from None
    if is_taken and not is_folder:
        raise ExportError(
            f"{where}: expected a free place or an avl package to replace, found a file; "
            "choose another --out"
        )
    for source in (path.resolve() for path in sources):
        if source.is_relative_to(place):
            raise ExportError(
                f"{where}: expected a place outside the checkpoint, found its weights inside; "
                "choose another --out"
            )
    if not entries:
        return Found(package=False)
    manifest = _manifest(place)
    if manifest is None:
        found = Found(False, tuple(sorted(shown(entry.name, LONGEST) for entry in entries)))
        raise ExportError(
            f"{where}: expected a free place or an avl package to replace, found something else "
            f"({found.text()}); choose another --out"
        )
    return Found(True, tuple(_others(place, manifest)))


def check_place(out: Path, force: bool, sources: Iterable[Path] = ()) -> Found:
    """What lies at `out`, where an export may replace it.

    Raises:
        ExportError: as `examine`; or more than a package lies there, without `force`.
    """
    found = examine(out, sources)
    place = out.resolve()
    above = next(p for p in (place, *place.parents) if os.path.lexists(p))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        what = "one that may not be written" if above.is_dir() else "a file"
        raise ExportError(
            f"{shown(out)}: expected a folder to write the package in, found {what} at "
            f"{shown(above)}; choose another --out"
        )
    if found.others and not force:
        raise ExportError(
            f"{shown(out)}: expected nothing beside the package that would be replaced, "
            f"found {found.text()}; move that elsewhere, choose another --out, or pass --force to "
            "remove it"
        )
    return found


@contextmanager
def staged(
    out: Path, force: bool, replaced: Callable[[Found], None] = lambda _: None
) -> Iterator[Path]:
    """A folder on the disk of `out` whose contents take the place of those of `out`.

    They do so if the block succeeds; if not, `out` is what it was. A folder that is there already
    stays the same folder, as it may be a mount or a working directory: its contents are exchanged.

    Args:
        replaced: hears what lay there, once that is gone.

    Raises:
        ExportError: something came there in the meantime.
    """
    place = out.resolve()
    inside = place.is_dir()
    created = [p for p in place.parents if not p.exists()]
    stage = stage_of(place / INSIDE if inside else place)
    old = stage.with_name(f".old-{os.getpid()}")
    found = Found(package=False)
    done = False
    try:
        sweep(stage.parent, INSIDE if inside else place.name)
        stage.mkdir(parents=True)
        yield stage
        if inside:
            found = check_place(out, force)
            _exchange(stage, place, old)
        elif os.path.lexists(place):
            raise ExportError(
                f"{shown(out)}: expected a free place, as it was at first, found that "
                "something has come there; choose another --out"
            )
        else:
            stage.rename(place)
        done = True
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if done and inside:
            shutil.rmtree(old, ignore_errors=True)
        if not done:
            for parent in created:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()
    replaced(found)


def _exchange(stage: Path, place: Path, old: Path) -> None:
    """Move what lies in `place` to `old` and what lies in `stage` to `place`, or nothing."""
    leaving = sorted({entry.name for entry in place.iterdir()} - {stage.name})
    coming = sorted(entry.name for entry in stage.iterdir())
    # Without its manifest a folder is no package: the old one goes first, the new one comes last.
    leaving.sort(key=lambda name: name != MANIFEST)
    coming.sort(key=lambda name: name == MANIFEST)
    moves = [(place / name, old / name) for name in leaving]
    moves += [(stage / name, place / name) for name in coming]
    old.mkdir()
    try:
        for source, target in moves:
            source.rename(target)
    except BaseException:
        for source, target in reversed(moves):
            if os.path.lexists(target) and not os.path.lexists(source):
                target.rename(source)
        old.rmdir()
        raise


def _is_stage(entry: Path) -> bool:
    """Whether `entry` is this process's own stage, or one that was left behind."""
    return entry == stage_of(entry.with_name(INSIDE)) or is_left_behind(entry, INSIDE)


def _manifest(place: Path) -> dict[str, Any] | None:
    """What the manifest in `place` says, of any version; None if the folder is no package.

    A damaged manifest says nothing about the files beside it.
    """
    path = place / MANIFEST
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MANIFEST_LIMIT:
            return {}
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and "format_version" in value else None


def _others(place: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """What lies in the package's folder beside what its export wrote, in words."""
    weights = manifest.get("weights")
    known = {MANIFEST, *_paths(manifest.get("files"))}
    if isinstance(weights, dict) and weights.get("folder") is None:
        known.update(_paths(weights.get("shards")))
    left = {name: size for name, size in _files(place) if name not in known}
    sets = manifest.get("engines")
    for engines in sets if isinstance(sets, list) else ():
        built = [p for p in _paths(_get(engines, "files")) if p in left]
        if built:
            known.update(built)
            nbytes = sum(left.pop(path) for path in built)
            yield f"{shown(built[0].rpartition('/')[0], LONGEST)} (engines, {size_text(nbytes)})"
    folders = {name.partition("/")[0] for name in known}
    groups: dict[str, list[int]] = {}
    for name, size in sorted(left.items()):
        top, _, rest = name.partition("/")
        groups.setdefault(f"{top}/" if rest and top not in folders else name, []).append(size)
    for name, sizes in groups.items():
        count = f"{len(sizes)} files, " if len(sizes) > 1 else ""
        yield f"{shown(name, LONGEST)} ({count}{size_text(sum(sizes))})"


def _files(place: Path) -> Iterator[tuple[str, int]]:
    """Every file and link below `place` and its size; links are not followed."""
    for folder, names, files in os.walk(place):
        here = Path(folder)
        names[:] = [n for n in names if not _is_stage(here / n) and not is_left_behind(here / n)]
        links = [name for name in names if (here / name).is_symlink()]
        for name in (*files, *links):
            path = here / name
            yield path.relative_to(place).as_posix(), path.lstat().st_size


def _paths(entries: Any) -> list[str]:
    found = (_get(entry, "path") for entry in (entries if isinstance(entries, list) else ()))
    return [path for path in found if isinstance(path, str)]


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None

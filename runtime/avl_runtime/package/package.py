"""The package manifest `avl.json`: what an export holds and how to trust it.

A package is a folder. `avl.json` names every other file in it with size and SHA-256, and the
safetensors shards its weights live in: inside the package, or in the checkpoint's own folder
(pinned by size, header and a sample of the weights). Reading it never executes anything and never
leaves the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from avl_plugins.errors import FormatError, quoted, shown
from avl_plugins.graph_io import DELTA, LAYER_KINDS, SLIDING
from avl_plugins.schema import COMPUTED, ROW_TYPES
from avl_runtime.package.dims import Dims
from avl_runtime.package.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    READ_VERSIONS,
    Embedding,
    FileEntry,
    ImageEncoder,
    Manifest,
    PackageError,
    Segment,
    Shard,
    Tokens,
    VideoEncoder,
    Weights,
)
from avl_runtime.package.shard_files import (
    HEADER_LIMIT,
    Compared,
    check_file,
    float32_bytes,
    header_sha256,
)
from avl_runtime.package.strict import build

__all__ = [
    "FORMAT_VERSION",
    "HEADER_LIMIT",
    "MANIFEST",
    "Dims",
    "Embedding",
    "FileEntry",
    "ImageEncoder",
    "Manifest",
    "Package",
    "PackageError",
    "Segment",
    "Shard",
    "Tokens",
    "VideoEncoder",
    "Weights",
    "header_sha256",
    "load_package",
]

MANIFEST_LIMIT = 16 << 20  # bytes; a real manifest has some kilobytes
TOKEN_IDS = 1 << 31  # more than any vocabulary has, and what arrays of ids hold


@dataclass(frozen=True, slots=True)
class Package:
    """A manifest whose paths have been checked, and the folder it was read from."""

    folder: Path
    manifest: Manifest

    @property
    def weights_folder(self) -> Path:
        recorded = self.manifest.weights.folder
        return self.folder if recorded is None else Path(recorded)

    def file(self, path: str) -> Path:
        return self.folder / path

    def read(self, path: str) -> bytes:
        """Bytes of a packaged file, checked against the manifest.

        Raises:
            PackageError: the file is missing, or its size or SHA-256 is not the recorded one.
        """
        entry = next((f for f in self.manifest.files if f.path == path), None)
        if entry is None:
            raise PackageError(
                f"{self.folder / MANIFEST}: expected an entry for {path}, found none; export again"
            )
        target = self.folder / path
        if not target.is_file():
            raise PackageError(f"{target}: expected a packaged file, found none; export again")
        found = target.stat().st_size
        if found != entry.size:
            raise PackageError(
                f"{target}: expected {entry.size} bytes, found {found}; "
                "the file has changed since export, export again"
            )
        data = target.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest != entry.sha256:
            raise PackageError(
                f"{target}: expected SHA-256 {entry.sha256[:12]}…, found {digest[:12]}…; "
                "the file has changed since export, export again"
            )
        return data

    def float32_bytes(self) -> int:
        """Bytes of all weights where 16-bit floats have become float32, as a CPU computes."""
        folder, shards = self.weights_folder, self.manifest.weights.shards
        return sum(float32_bytes(folder / shard.path) for shard in shards)

    def check_shards(self, whole: bool = False) -> Compared:
        """Check that every shard is the file that the export saw: size, header and a sample.

        Args:
            whole: read all bytes too and compare their SHA-256, which packages with weights of
                their own and those exported with --hash-weights record.

        Raises:
            PackageError: a shard is missing or differs from the one exported; or with `whole`,
                neither a hash nor a sample is recorded.
        """
        compared = Compared()
        for shard in self.manifest.weights.shards:
            check_file(self.weights_folder / shard.path, shard, whole, compared)
        return compared


def load_package(folder: str | Path) -> Package:
    """Read and check the manifest in `folder`; the other files are checked when they are read.

    Raises:
        PackageError: no manifest, damaged JSON, a newer format, unknown or missing keys, or a
            path that leaves the folder.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise PackageError(
            f"expected the path of a package folder, found {quoted(folder)}; make a package with "
            "avl-export"
        )
    if not os.fspath(folder):  # as a path it would be the working directory
        raise PackageError(
            f"expected the path of a package folder, found {quoted(folder)}; name one, . is the "
            "working directory"
        )
    root = Path(os.fsdecode(folder))
    path = root / MANIFEST
    if not _is_there(path):
        raise PackageError(
            f"{shown(root)}: expected a package folder with {MANIFEST}, found none; "
            "make one with avl-export"
        )
    if path.stat().st_size > MANIFEST_LIMIT:
        raise PackageError(f"{path}: expected at most {MANIFEST_LIMIT} bytes; export again")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{path}: expected JSON, found {error}; export again") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        found = "none" if version is None else quoted(version)
        raise PackageError(
            f"{path}: expected a whole number as format_version, found {found}; export again"
        )
    if version not in READ_VERSIONS:
        way_out = "update avl" if version > FORMAT_VERSION else "export again"
        raise PackageError(
            f"{path}: expected package format {FORMAT_VERSION}, found {version}; {way_out}"
        )
    try:
        manifest = build(Manifest, raw, str(path))
    except FormatError as error:
        raise PackageError(f"{error}; export again") from None
    _check_paths(manifest, path)
    _check_agreement(manifest, path)
    return Package(root, manifest)


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # a name too long for a file, or a folder that may not be read
        reason = error.strerror
        raise PackageError(
            f"{shown(path.parent)}: expected a package folder, found: {reason}; check the path"
        ) from None


def _check_paths(manifest: Manifest, path: Path) -> None:
    names = [entry.path for entry in manifest.files]
    names += [shard.path for shard in manifest.weights.shards]
    names += [file.path for engines in manifest.engines for file in engines.files]
    names += [*manifest.graphs, manifest.embedding.file]
    names += [file for segment in manifest.segments for _, file in segment.kept]
    for name in names:
        pure = PurePosixPath(name)
        try:
            odd = not name or b"\0" in os.fsencode(name) or "\\" in name
        except UnicodeEncodeError:
            odd = True
        if odd or pure.is_absolute() or ".." in pure.parts:
            raise PackageError(
                f"{path}: expected paths inside the package, found {quoted(name)}; "
                "do not use this package"
            )
    for name in (entry.path for entry in manifest.files):
        # realpath, as Path.resolve fails of links that lead to themselves: those are told later.
        place = Path(os.path.realpath(path.parent / name))
        if not place.is_relative_to(os.path.realpath(path.parent)):
            raise PackageError(
                f"{path}: expected files inside the package, found {quoted(name)} leading out of "
                "it; do not use this package"
            )


def _check_agreement(manifest: Manifest, path: Path) -> None:
    dims, embedding = manifest.dims, manifest.embedding
    if (mistake := dims.mistake()) is not None:
        raise PackageError(f"{path}: dims: {mistake}; export again")
    bounds = [0, *(segment.last_layer for segment in manifest.segments)]
    found = [*(segment.first_layer for segment in manifest.segments), dims.num_layers]
    if found != bounds:
        raise PackageError(
            f"{path}: expected segments that hold all {dims.num_layers} layers in order, found "
            f"beginnings {found[:-1]} and ends {bounds[1:]}; export again"
        )
    for segment in manifest.segments:
        _check_kinds(segment, manifest, path)
        _check_kept(segment, manifest, path)
    named = all(one.kinds is not None for one in manifest.segments)
    if (named or dims.shared is not None) and list(manifest.row_layers) != dims.row_layers:
        raise PackageError(
            f"{path}: expected states, and rows of another layer, of the layers whose kind says "
            f"so, found {quoted(dims.states, 80)} and {quoted(dims.shared, 80)}; export again"
        )
    for layer, source in dims.sources.items():
        cut = any(source < bound <= layer for bound in bounds)
        if source not in dims.row_layers or not source < layer or cut:
            raise PackageError(
                f"{path}: expected layer {layer} to read the rows of an earlier one of its graph, "
                f"found layer {quoted(source)}; export again"
            )
    if embedding.shape[1] != dims.hidden_size:
        raise PackageError(
            f"{path}: expected an embedding of {dims.hidden_size} columns, the hidden size, found "
            f"{embedding.shape[1]}; export again"
        )
    if embedding.file not in {shard.path for shard in manifest.weights.shards}:
        raise PackageError(
            f"{path}: expected the embedding in one of the shards, found "
            f"{quoted(embedding.file)}; export again"
        )
    _check_layer_table(manifest, path)
    slides = any(SLIDING.name in (segment.kinds or ()) for segment in manifest.segments)
    if slides != bool(manifest.reach.window):
        raise PackageError(
            f"{path}: expected a window where layers are of the kind {SLIDING.name}, and there "
            f"alone, found a window of {quoted(manifest.reach.window)}; export again"
        )
    rules = manifest.generation
    ids = [*manifest.tokens.eos, *rules.suppress_tokens, *rules.begin_suppress_tokens]
    ids += [one for words in rules.bad_words_ids for one in words]
    wrong = next((one for one in ids if not 0 <= one < TOKEN_IDS), None)
    if wrong is not None:
        raise PackageError(
            f"{path}: expected token ids from 0 to {TOKEN_IDS - 1}, found {quoted(wrong)}; export "
            "again"
        )


def _check_kept(segment: Segment, manifest: Manifest, path: Path) -> None:
    names = [name for name, _ in segment.kept]
    for name in names:
        if name not in ROW_TYPES or name == COMPUTED.name:
            known = ", ".join(other for other in ROW_TYPES if other != COMPUTED.name)
            raise PackageError(
                f"{path}: expected rows that this version of avl keeps ({known}), found "
                f"{quoted(name)} beside {segment.file}; update avl, or export again with this "
                "version"
            )
        if names.count(name) > 1:
            raise PackageError(
                f"{path}: expected one graph for rows in {name} beside {segment.file}, found "
                f"{names.count(name)}; export again"
            )
    if manifest.checked_rows is not None and manifest.checked_rows.rows not in names:
        raise PackageError(
            f"{path}: checked_rows: expected rows that {segment.file} has a graph for, found "
            f"{manifest.checked_rows.rows}; export again, or write null there"
        )


def _check_layer_table(manifest: Manifest, path: Path) -> None:
    dims, said = manifest.dims, manifest.layer_table
    if bool(dims.layer_inputs) != (said is not None) or dims.layer_inputs < 0:
        raise PackageError(
            f"{path}: expected a table where layers read inputs of their own, and there alone, "
            f"found layer_inputs of {quoted(dims.layer_inputs)}; export again"
        )
    if said is None:
        return
    table, columns = said.table, dims.num_layers * dims.layer_inputs
    tokens = manifest.embedding.shape[0]
    shards = {shard.path for shard in manifest.weights.shards}
    sizes = table.shape[0] >= tokens and table.shape[1] == columns
    if not sizes or table.file not in shards:
        raise PackageError(
            f"{path}: expected a table of layers' inputs of {columns} numbers for each of {tokens} "
            f"tokens in one of the shards, found {quoted(said, 120)}; export again"
        )
    if not 0 <= said.visual < table.shape[0]:
        raise PackageError(
            f"{path}: expected a row of {table.shape[0]} for visual tokens, found "
            f"{quoted(said.visual)}; export again"
        )


def _check_kinds(segment: Segment, manifest: Manifest, path: Path) -> None:
    if segment.kinds is None:
        return
    layers = segment.last_layer - segment.first_layer
    if len(segment.kinds) != layers:
        raise PackageError(
            f"{path}: expected the kinds of the {layers} layers of {segment.file}, found "
            f"{len(segment.kinds)}; export again"
        )
    for layer, kind in enumerate(segment.kinds, segment.first_layer):
        if kind not in LAYER_KINDS:
            raise PackageError(
                f"{path}: expected layers of a kind that this version of avl runs "
                f"({', '.join(LAYER_KINDS)}), found {quoted(kind)} as that of layer {layer}; "
                "update avl, or export again with this version"
            )
    kinds, sizes = [LAYER_KINDS[kind] for kind in segment.kinds], manifest.dims.states
    if not any(kind.has_rows for kind in kinds):
        raise PackageError(
            f"{path}: expected a layer that keeps rows in {segment.file}, found none; export again"
        )
    wants = [value for kind in kinds for value in kind.states]
    if wants and (sizes is None or sizes.kernel < 2 or (DELTA in wants and not sizes.heads)):
        raise PackageError(
            f"{path}: expected sizes of the states that layers of {segment.file} keep, found "
            f"{quoted(sizes, 80)}; export again"
        )

"""Finds the engines of a package that run on this machine, and trusts no others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from avl_runtime.execute.protocol import BackendError
from avl_runtime.machine.libraries import installed
from avl_runtime.machine.probe import Machine
from avl_runtime.package.engine_sets import EngineBackend, EngineSet, dotted
from avl_runtime.package.package import Package

CHUNK = 8 << 20  # bytes hashed at a time


@dataclass(frozen=True, slots=True)
class Engines:
    """A set of engines that fits this machine, and the files of its graphs, checked."""

    made: EngineSet
    paths: dict[str, Path]


def find_engines(package: Package, backend: EngineBackend, machine: Machine) -> Engines:
    """The engines of `package` for `backend` on `machine`.

    Of several that run, the one for fewest GPUs.

    Raises:
        BackendError: there are none, none runs here, or a file is not the one that was built.
    """
    sets = [one for one in package.manifest.engines if one.backend == backend]
    if not sets:
        raise BackendError(
            f"{package.folder}: expected engines for {backend}, found none; "
            f"run: avl-build {package.folder} --backend {backend}"
        )
    library = installed(backend)
    version = None if library is None else library.version
    misfits = [(one, one.misfit(machine, version)) for one in sets]
    fitting = [one for one, misfit in misfits if misfit is None]
    if not fitting:
        told = "; or ".join(f"{one.wants()}, found {misfit}" for one, misfit in misfits)
        raise BackendError(
            f"{package.folder}: expected, for its engines, {told}; {_way_out(backend, machine)}"
        )
    chosen = min(fitting, key=lambda one: (not one.targets, len(one.targets)))
    paths = {file.graph: package.folder / file.path for file in chosen.files}
    for file in chosen.files:
        _check(paths[file.graph], file.size, file.sha256)
    missing = [graph for graph in package.manifest.graphs if graph not in paths]
    if missing:
        raise BackendError(
            f"{package.folder / chosen.folder}: expected an engine of {missing[0]}, found none; "
            f"run: avl-build {package.folder} --backend {backend}"
        )
    return Engines(chosen, paths)


def _way_out(backend: EngineBackend, machine: Machine) -> str:
    if not machine.gpus:
        return "use --backend ort-cpu"
    target = machine.gpus[0].capability
    return (
        f"build for this machine's compute capability {dotted(target)} with avl-build --backend "
        f"{backend}, or use --backend ort-cpu"
    )


def _check(path: Path, size: int, sha256: str) -> None:
    """An engine is code to TensorRT: it must be the very file that was built."""
    if not path.is_file():
        raise BackendError(f"{path}: expected an engine, found none; build it again")
    found = path.stat().st_size
    if found != size:
        raise BackendError(
            f"{path}: expected {size} bytes, found {found}; the engine was cut short or replaced, "
            "build it again"
        )
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    if digest.hexdigest() != sha256:
        raise BackendError(
            f"{path}: expected SHA-256 {sha256[:12]}…, found {digest.hexdigest()[:12]}…; the "
            "engine has changed since it was built, build it again"
        )

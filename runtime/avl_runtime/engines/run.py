"""Builds the engines of a package, all of them or none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from avl_runtime.engines.estimate import Estimate, estimate
from avl_runtime.engines.jobs import REFUSED, Job, Outcome, read_outcome
from avl_runtime.engines.options import BuildError
from avl_runtime.engines.plan import Plan
from avl_runtime.package.engine_sets import EngineFile, EngineSet
from avl_runtime.package.manifest import Manifest
from avl_runtime.package.package import MANIFEST, Package, load_package
from avl_runtime.package.staging import stage_of, sweep

WORKER = "avl_runtime.engines.worker"


@dataclass(frozen=True, slots=True)
class Built:
    """A graph's outcome, and what was expected of it."""

    graph: str
    outcome: Outcome
    estimate: Estimate


def examine(plan: Plan) -> tuple[Built, ...]:
    """Parse and check every graph, and build none.

    Raises:
        AvlError: a graph is damaged, or parsed into something else than it says.
    """
    return tuple(_work(plan, graph, None) for graph in plan.package.manifest.graphs)


def build(plan: Plan) -> tuple[EngineSet, tuple[Built, ...]]:
    """Build every graph and enter the engines in the manifest.

    Engines are built beside their place and moved there when all are complete: whatever fails, no
    part of them is left behind, and engines already there stay as they were.

    Raises:
        AvlError: a graph cannot be built, there is no room for its engine, or files that are none
            of the package's lie in the folder.
    """
    package = plan.package
    place = package.folder / plan.engine_set(()).folder
    built, files = [], []
    try:
        _check_free(place, package.manifest)
        with _staged(place) as stage:
            for graph in package.manifest.graphs:
                path = stage / Path(graph).with_suffix(".engine").name
                one = _work(plan, graph, path)
                built.append(one)
                name = f"{place.relative_to(package.folder).as_posix()}/{path.name}"
                files.append(EngineFile(graph, name, one.outcome.size, one.outcome.sha256))
            made = plan.engine_set(files)
            now = _current(package)
            _check_free(place, now)
            others = [one for one in now.engines if one.folder != made.folder]
            entered = now.with_engines((*others, made))
            _move(stage, place, package.folder / MANIFEST, entered)
    except OSError as error:
        raise BuildError(
            f"{place}: expected to write engines there, found {error.strerror or error}; "
            "free some space, or make the package writable"
        ) from None
    return made, tuple(built)


def _current(package: Package) -> Manifest:
    """The manifest as it is by now.

    Raises:
        BuildError: the package was exported anew in the meantime.
    """
    now = load_package(package.folder).manifest
    if now.with_engines(()) != package.manifest.with_engines(()):
        raise BuildError(
            f"{package.folder}: expected the package that the build began with, found another; "
            "build again"
        )
    return now


def _check_free(place: Path, manifest: Manifest) -> None:
    """Refuse to replace a folder in which more lies than the engines of an older set.

    Raises:
        BuildError: it holds files that the manifest does not know.
    """
    paths = [Path(file.path) for one in manifest.engines for file in one.files]
    known = {path.name for path in paths if path.parent.name == place.name}
    lying = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    foreign = [name for name in lying if name not in known]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise BuildError(
            f"{place}: expected nothing but an older set of engines, which would be replaced, "
            f"found {foreign[0][:60]!r}{more}; move that elsewhere"
        )


def _work(plan: Plan, graph: str, out: Path | None) -> Built:
    """Have one graph looked at or built by a process of its own."""
    options = plan.options
    job = Job(
        package=str(plan.package.folder.resolve()),
        graph=graph,
        backend=options.backend,
        targets=plan.targets,
        plugins=plan.plugins,
        limits=plan.limits,
        out=None if out is None else str(out.resolve()),
        timing_cache=None if plan.timing_cache is None else str(plan.timing_cache),
    )
    # Not from the working directory, which may hold modules of any name.
    command = [sys.executable, "-P", "-m", WORKER]
    with subprocess.Popen(  # noqa: S603 - our own module in our own Python
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            answer, _ = process.communicate(job.to_json().encode())
        except BaseException:
            process.kill()
            raise
    text = answer.decode(errors="replace")
    if process.returncode == REFUSED:
        raise BuildError(text)
    if process.returncode:
        raise BuildError(_death(graph, process.returncode, plan, text))
    outcome = read_outcome(text)
    expected = estimate(
        plan.package.manifest, graph, outcome.weight_bytes, outcome.int4_bytes, plan.limits
    )
    if outcome.scratch:
        expected = replace(expected, scratch=outcome.scratch)
    return Built(graph, outcome, expected)


def _death(graph: str, status: int, plan: Plan, text: str) -> str:
    """What to say of a builder that ended without an answer."""
    if status == -signal.SIGKILL:
        return (
            f"{graph}: expected the builder to finish, found it killed, most likely for want of "
            "memory; close other programs, or export with more segments (--split) for smaller "
            "engines"
        )
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    library = plan.library.version if plan.library is not None else "none"
    return (
        f"{graph}: expected the builder to finish, found that {plan.options.backend} {library} "
        f"ended with {how} {text[:200]}; build with another version of it, and report this"
    )


@contextmanager
def _staged(place: Path) -> Iterator[Path]:
    """An empty folder beside `place`, which is removed again with all that is left in it."""
    parent = place.parent
    fresh = not parent.exists()
    stage = stage_of(place)
    sweep(parent)
    try:
        stage.mkdir(parents=True)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if fresh and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _move(stage: Path, place: Path, path: Path, manifest: Manifest) -> None:
    """Put engines and manifest in their places, both or neither."""
    old = place.with_name(f".{place.name}.old-{os.getpid()}")
    draft = path.with_name(f".{path.name}.partial-{os.getpid()}")
    done = False
    try:
        draft.write_text(manifest.to_json(), encoding="utf-8")
        if place.exists():
            place.rename(old)
        stage.rename(place)
        draft.replace(path)
        done = True
    finally:
        draft.unlink(missing_ok=True)
        if not done and not stage.exists() and place.exists():
            place.rename(stage)
        if not done and old.exists():
            old.rename(place)
        shutil.rmtree(old, ignore_errors=True)

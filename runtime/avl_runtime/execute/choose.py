"""Which backend runs a package here: the one asked for by name, or the best that works."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from avl_plugins.errors import AvlError, quoted
from avl_plugins.schema import COMPUTED, ROW_TYPES, RowType
from avl_runtime.execute.device.backend import DeviceBackend
from avl_runtime.execute.device.executor import DeviceExecutor
from avl_runtime.execute.device.ort_cuda import load_ort_cuda
from avl_runtime.execute.host.compute import check_compute
from avl_runtime.execute.host.executor import HostExecutor
from avl_runtime.execute.host.ort import OrtBackend
from avl_runtime.execute.host.segments import HostBackend
from avl_runtime.execute.protocol import BACKENDS, KV, PARKS, BackendError, Executor
from avl_runtime.machine.probe import Machine, probe
from avl_runtime.package.engine_sets import EngineBackend
from avl_runtime.package.manifest import CAUSAL, Manifest
from avl_runtime.package.package import Package

AnyBackend = HostBackend | DeviceBackend
ENGINES: tuple[EngineBackend, ...] = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend; `load` raises a BackendError where it cannot run the package here.

    `unfit` says in short what is known to be missing without trying.
    """

    name: str
    load: Callable[[], AnyBackend]
    unfit: str | None = None


def load_backend(
    name: str,
    package: Package,
    threads: int | None,
    park: str = "device",
    machine: Machine | None = None,
    kv: str = "auto",
    compute: str = "auto",
) -> AnyBackend:
    """Load `package` on the backend called `name`.

    For `auto` the best that works, which one line on stderr names with the reason.

    Args:
        park: where parked rows lie between refreshes, of `PARKS`.
        machine: what to run on; looked up unless given.
        kv: how cached rows are kept, of `KV`.
        compute: what prompts are multiplied in on ort-cpu, of `COMPUTES`.

    Raises:
        BackendError: unknown name, or that very backend cannot run the package here; or parked rows
            are to lie elsewhere than the others, or prompts to be computed otherwise, where that
            means nothing; or rows kept as they cannot be.
        PackageError: the package has no graphs that keep rows so.
    """
    if not isinstance(park, str) or park not in PARKS:
        raise BackendError(
            f"expected park to be {' or '.join(PARKS)}, found {quoted(park)}; choose one of them"
        )
    if not isinstance(name, str) or name not in BACKENDS:
        raise BackendError(
            f"expected a backend of {', '.join(BACKENDS)}, found {quoted(name)}; choose one of them"
        )
    check_compute(compute)
    if park == "host" and name == "ort-cpu":
        raise _nothing_to_park()
    kept = _kept(kv, name, package)
    if compute != "auto" and name not in ("auto", "ort-cpu"):
        raise BackendError(
            f"--compute {compute}: expected ort-cpu, found {name}; add --backend ort-cpu, or leave "
            "it out"
        )
    for_cpu = "--compute" if compute != "auto" else "--kv" if kept not in (None, COMPUTED) else None
    if for_cpu is not None and name == "auto":
        print(f"avl: backend ort-cpu, which {for_cpu} is for", file=sys.stderr)
    if for_cpu is not None or name == "ort-cpu":  # needs nothing of the machine
        return _on_cpu(package, threads, kept, compute)
    alone = _for_cpu_alone(package.manifest)
    if alone is not None:
        if name != "auto":
            raise BackendError(
                f"expected a package whose tokens attend to all before them, as {name} runs, found "
                f"{alone}; use ort-cpu"
            )
        if park == "host":
            raise _nothing_to_park()
        print(f"avl: backend ort-cpu, which alone runs {alone}", file=sys.stderr)
        return _on_cpu(package, threads, kept, compute)
    ways = candidates(package, threads, park, probe() if machine is None else machine, kept)
    if name != "auto":
        return next(way for way in ways if way.name == name).load()
    backend, line = best(ways)
    if park == "host" and backend.name == "ort-cpu":
        raise _nothing_to_park()
    print(line, file=sys.stderr)
    return backend


def executor_on(backend: AnyBackend, manifest: Manifest) -> Executor:
    """What runs the decoder of a package that is loaded on a backend."""
    if isinstance(backend, DeviceBackend):
        return DeviceExecutor(backend)
    return HostExecutor(backend, manifest)


def _for_cpu_alone(manifest: Manifest) -> str | None:
    """What of a package no other backend runs; None if there is nothing."""
    if manifest.reach != CAUSAL:
        return str(manifest.reach)
    if manifest.dims.experts is not None:
        return "a mixture of experts"
    return None if manifest.dims.states is None else "layers that keep a state"


def _kept(kv: str, name: str, package: Package) -> RowType | None:
    """How rows are kept, as the package's graphs and a backend can; None: nobody says how."""
    if not isinstance(kv, str) or kv not in KV:
        raise BackendError(
            f"expected kv to be one of {', '.join(KV)}, found {quoted(kv)}; choose one of them"
        )
    own = package.manifest.dtype
    if kv == "auto":
        return None
    if kv == own:
        return COMPUTED
    if kv not in ROW_TYPES:
        raise BackendError(
            f"--kv {kv}: expected rows as this package computes, {own}, found {kv}; leave it out, "
            f"or export with --dtype {kv}"
        )
    if name not in ("auto", "ort-cpu"):
        raise BackendError(
            f"--kv {kv}: expected the backend ort-cpu, which alone keeps rows as {kv}, found "
            f"{name}; leave one of the two out"
        )
    return ROW_TYPES[kv]


def _on_cpu(
    package: Package, threads: int | None, kept: RowType | None, compute: str = "auto"
) -> OrtBackend:
    if package.manifest.dtype == "fp16":
        print(
            "avl: this package computes in fp16, for GPUs; on a CPU one exported with --dtype fp32 "
            "is faster and reads the same weights",
            file=sys.stderr,
        )
    checked = package.manifest.checked_rows
    if kept is None and checked is not None:
        print(
            f"avl: rows in {checked.rows}, harmless in {checked.questions} questions of avl-tune; "
            f"--kv {package.manifest.dtype} keeps them as computed",
            file=sys.stderr,
        )
        kept = ROW_TYPES[checked.rows]
    return OrtBackend(package, threads, COMPUTED if kept is None else kept, compute)


def _nothing_to_park() -> BackendError:
    return BackendError(
        "--park host: expected a backend that keeps rows on a GPU, found ort-cpu, whose rows are "
        "all in the host's memory; leave it out, or use another backend"
    )


def candidates(
    package: Package,
    threads: int | None,
    park: str,
    machine: Machine,
    kept: RowType | None = None,
) -> list[Candidate]:
    """All backends, best first; the last needs nothing of the machine."""
    made = [_with_engines(name, package, park, machine) for name in ENGINES]
    no_gpu = None if machine.gpus else f"no NVIDIA GPU ({machine.trouble})"
    made.append(
        Candidate(
            "ort-cuda",
            lambda: load_ort_cuda(package, threads, machine, park_on_host=park == "host"),
            no_gpu,
        )
    )
    made.append(Candidate("ort-cpu", lambda: _on_cpu(package, threads, kept)))
    return made


def best(ways: Sequence[Candidate]) -> tuple[AnyBackend, str]:
    """The first candidate that works, and the line that says which and why.

    Raises:
        BackendError: none works; the last one's reason.
    """
    reasons = []
    for way in ways[:-1]:
        if way.unfit is not None:
            reasons.append(f"{way.name}: {way.unfit}")
            continue
        try:
            backend = way.load()
        except AvlError as error:  # cuda-python may be missing too
            reasons.append(f"{way.name}: {error}")
        else:
            return backend, _line(way.name, reasons)
    return ways[-1].load(), _line(ways[-1].name, reasons)


def _line(name: str, reasons: Sequence[str]) -> str:
    return f"avl: backend {name}, the best that works ({'; '.join(reasons) or 'none is better'})"


def _with_engines(name: EngineBackend, package: Package, park: str, machine: Machine) -> Candidate:
    def load() -> AnyBackend:
        from avl_runtime.execute.device.tensorrt import load_engines

        return load_engines(package, name, machine, park_on_host=park == "host")

    has_some = any(one.backend == name for one in package.manifest.engines)
    return Candidate(name, load, None if has_some else "no engines in this package")

"""What a build will do, decided before anything is built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avl_plugins.kernels.catalog import HEAD_DIMS
from avl_plugins.tensorrt import OLDEST
from avl_runtime.engines.options import BuildError, Options
from avl_runtime.machine.installation import install_extra
from avl_runtime.machine.libraries import Library, installed
from avl_runtime.machine.probe import Machine
from avl_runtime.package.engine_sets import (
    ROW_BLOCK,
    EngineFile,
    EngineSet,
    Limits,
    dotted,
    target_name,
)
from avl_runtime.package.manifest import CAUSAL, Manifest
from avl_runtime.package.package import Package, load_package

TURING = 75


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything decided.

    Attributes:
        library: the builder's, None if it is missing, which only a dry run allows.
        plugins: whether the attention becomes a plugin; `why` says it for people.
        timing_cache: see `engine.write_engine`.
    """

    package: Package
    options: Options
    library: Library | None
    platform: str
    targets: tuple[int, ...]
    plugins: bool
    why: str
    limits: Limits
    timing_cache: Path | None

    @property
    def row_block(self) -> int:
        """As in the manifest."""
        return 1 if self.plugins else ROW_BLOCK

    def engine_set(self, files: Sequence[EngineFile]) -> EngineSet:
        """What the manifest will say."""
        return EngineSet(
            backend=self.options.backend,
            version=self.library.version if self.library is not None else "missing",
            targets=self.targets,
            cuda=self.library.cuda if self.library is not None else None,
            platform=self.platform,
            plugins=self.plugins,
            row_block=self.row_block,
            limits=self.limits,
            files=tuple(files),
        )


def make_plan(options: Options, machine: Machine) -> Plan:
    """Open the package and decide how to build it.

    Raises:
        AvlError: the package is damaged, or cannot be built like this on this machine.
    """
    package = load_package(options.package)
    if package.manifest.reach != CAUSAL:
        raise BuildError(
            f"{options.package}: expected tokens that attend to all before them, found "
            f"{package.manifest.reach}, whose engines nothing drives; run it on ort-cpu"
        )
    package.check_shards()
    if package.manifest.dims.states is not None:
        raise BuildError(
            f"{package.folder}: expected layers that all keep rows, as devices' caches hold them, "
            "found some that keep a state, whose engines nothing drives; run the package on ort-cpu"
        )
    if package.manifest.dims.experts is not None:
        raise BuildError(
            f"{package.folder}: expected layers that read all of their weights, which devices are "
            "tried with, found a mixture of experts; run the package on ort-cpu"
        )
    library = installed(options.backend)
    missing = [name for name in ("onnx", "polygraphy") if installed(name) is None]
    if library is None:
        missing.append(options.backend)
    if missing and (not options.dry_run or "onnx" in missing):
        raise BuildError(
            f"expected the packages of the {options.backend} extra, found no "
            f"{', '.join(missing)}; run: {install_extra(options.backend)}"
        )
    targets = options.targets
    if options.backend == "tensorrt":
        targets = _own_target(options, machine)
    _check_weights(package, targets)
    plugins, why = _plugins(options, library, package.manifest)
    return Plan(
        package=package,
        options=options,
        library=library,
        platform=machine.platform,
        targets=targets,
        plugins=plugins,
        why=why,
        limits=options.limits(package.manifest.dims, 1 if plugins else ROW_BLOCK),
        timing_cache=_timing_cache(library, targets) if options.backend == "tensorrt" else None,
    )


def _own_target(options: Options, machine: Machine) -> tuple[int, ...]:
    """TensorRT times kernels on the GPU that an engine is for."""
    if not machine.gpus:
        if options.dry_run:
            return options.targets
        raise BuildError(
            "expected an NVIDIA GPU, on which TensorRT builds for its own kind, found none "
            f"({machine.trouble}); build there, or use --backend tensorrt-rtx, which builds "
            "anywhere"
        )
    own = (machine.gpus[0].capability,)
    if options.targets not in ((), own):
        raise BuildError(
            f"--compute-capability: expected {own[0]}, the GPU of this machine, as TensorRT "
            f"builds for no other, found {', '.join(map(str, options.targets))}; leave it out, or "
            "use --backend tensorrt-rtx"
        )
    return own


def _check_weights(package: Package, targets: Sequence[int]) -> None:
    manifest = package.manifest
    if TURING in targets and manifest.dtype != "fp16":
        raise BuildError(
            f"{package.folder}: expected an fp16 package for compute capability {dotted(TURING)}, "
            f"found {manifest.dtype}; export with --dtype fp16"
        )
    quantization = manifest.quantization
    if quantization is not None and quantization.zero_points:
        raise BuildError(
            f"{package.folder}: expected weights without zero points, found some, which TensorRT "
            "cannot take; export with --quantize from a checkpoint that is not quantized"
        )


def _plugins(options: Options, library: Library | None, manifest: Manifest) -> tuple[bool, str]:
    """Whether the attention becomes a plugin, and why or why not."""
    found = "no TensorRT" if library is None else f"TensorRT {library.version}"
    oldest, served = ".".join(map(str, OLDEST)), ", ".join(map(str, HEAD_DIMS))
    head_dim = manifest.dims.head_dim
    against = {
        "TensorRT-RTX has no plugins:": options.backend == "tensorrt-rtx",
        "as asked,": not options.plugins,
        f"{found} has no ahead-of-time plugins, {oldest} has:": library is not None
        and library.release < OLDEST,
        "plugins are for fp16 and bf16, this package is fp32:": manifest.dtype == "fp32",
        f"plugins are for heads of {served}, these are of {head_dim}:": head_dim not in HEAD_DIMS,
    }
    why = next((why for why, holds in against.items() if holds), None)
    if why is None:
        return True, "attention is the plugin"
    return False, f"{why} attention is its function body"


def _timing_cache(library: Library | None, targets: Sequence[int]) -> Path | None:
    if library is None:
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "avl" / f"tensorrt-{library.version}-{target_name(targets)}.timing"

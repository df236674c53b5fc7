"""Backends `tensorrt` and `tensorrt-rtx`: engines that avl-build has put into a package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from avl_runtime.execute.device.backend import DeviceBackend, EncoderRunner, place_of
from avl_runtime.execute.device.cuda import CudaDevice
from avl_runtime.execute.device.elements import ELEMENTS
from avl_runtime.execute.device.engine import (
    PROFILES,
    Context,
    EngineEncoder,
    EngineSegment,
    Library,
    Scratch,
)
from avl_runtime.execute.device.memory import Memory
from avl_runtime.execute.device.protocol import Device, OutOfDeviceMemoryError, mebibytes
from avl_runtime.execute.device.trusted import Engines, find_engines
from avl_runtime.execute.protocol import BackendError
from avl_runtime.machine.installation import install
from avl_runtime.machine.probe import Machine
from avl_runtime.package.engine_sets import EngineBackend
from avl_runtime.package.package import Package

MODULES: dict[EngineBackend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def load_engines(
    package: Package, name: EngineBackend, machine: Machine, *, park_on_host: bool = False
) -> DeviceBackend:
    """Load a package's engines on the first GPU.

    Args:
        park_on_host: keep parked rows in the host's memory between refreshes.

    Raises:
        BackendError: there are no engines that run here, or one does not load.
        AvlError: cuda-python or a driver is missing, or the GPU has not enough memory.
    """
    engines = find_engines(package, name, machine)
    try:
        module = importlib.import_module(MODULES[name])
    except (ImportError, OSError) as error:  # installed, but a library of its own is missing
        raise BackendError(
            f"expected {name} {engines.made.version} to start, found: {error}; "
            f"run: {install('--force-reinstall', name)}, or use --backend ort-cpu"
        ) from error
    return open_engines(package, engines, module, CudaDevice(), park_on_host=park_on_host)


def open_engines(
    package: Package, engines: Engines, module: Any, device: Device, *, park_on_host: bool = False
) -> DeviceBackend:
    """Load engines that have been checked, with their library, on a device.

    Raises:
        BackendError: one does not load, or the device has not enough memory.
    """
    memory = Memory(device)
    try:
        return _open(package, engines, module, memory, park_on_host)
    except OutOfDeviceMemoryError as error:
        fit = "build with a smaller --max-prompt, --max-context or --max-batch"
        loaded = f" for {engines.made.folder} behind {mebibytes(memory.used['weights'])} of weights"
        told = OutOfDeviceMemoryError(error.wanted, error.free, error.total, loaded, fit)
        raise BackendError(str(told)) from error


def _open(
    package: Package, engines: Engines, module: Any, memory: Memory, park_on_host: bool
) -> DeviceBackend:
    manifest, made = package.manifest, engines.made
    library, stream = Library(module), memory.device.stream
    loaded = {graph: library.load(engines.paths[graph], memory) for graph in manifest.graphs}
    scratch = Scratch(memory, list(loaded.values()))

    def context(graph: str, profile: int) -> Context:
        path: Path = engines.paths[graph]
        return Context(library, loaded[graph], profile, scratch, stream, path)

    files = manifest.encoders
    encoders: dict[str, EncoderRunner] = {
        file: EngineEncoder(context(file, 0), loaded[file], memory) for file in set(files.values())
    }
    segments = [
        EngineSegment(
            {use: context(part.file, profile) for use, profile in PROFILES.items()}, made.row_block
        )
        for part in manifest.segments
    ]
    element = ELEMENTS[manifest.dtype]
    return DeviceBackend(
        name=made.backend,
        manifest=manifest,
        memory=memory,
        element=element,
        segments=segments,
        encoders={kind: encoders[file] for kind, file in files.items()},
        limits=made.limits,
        place=place_of(manifest, memory, element, made.row_block, park_on_host=park_on_host),
    )

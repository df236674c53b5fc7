"""What this machine has for each backend, and what would install the rest."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass

from avl_plugins import cpu
from avl_plugins.errors import AvlError
from avl_plugins.tensorrt import OLDEST
from avl_runtime.engine_sets import DRIVER_OF_CUDA, dotted
from avl_runtime.libraries import Library, installed
from avl_runtime.machine import Machine

DRIVERS = "https://www.nvidia.com/drivers"

Find = Callable[[str], Library | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked for.

    Attributes:
        found: what is there, for people.
        needed_for: what it is for.
        fix: what to do about it, None where nothing is missing.
    """

    name: str
    found: str
    needed_for: str
    fix: str | None = None


def diagnose(machine: Machine, find: Find = installed) -> tuple[Finding, ...]:
    """Look for everything that a backend or a build may need."""
    return (
        Finding("python", f"{platform.python_version()} on {machine.platform}", "everything"),
        Finding("avl", _version_of(find("avl")) or "not installed", "everything"),
        *_gpus(machine),
        _driver(machine),
        _onnxruntime(machine, find),
        *_tensorrt(machine, find),
        _rtx(find),
        _plain("polygraphy", find, "avl-build", "pip install 'avl[tensorrt-rtx]'"),
        _plain("onnx", find, "avl-export and avl-build", "pip install 'avl[export]'"),
        _plain("cuda-python", find, "decoding on a GPU", "pip install 'avl[cuda]'"),
        _kernels(machine),
        _cpu_kernels(),
    )


def _gpus(machine: Machine) -> list[Finding]:
    wanted = "every backend but ort-cpu"
    if not machine.gpus:
        return [
            Finding(
                "GPU",
                f"none: {machine.trouble}",
                wanted,
                f"on a machine with an NVIDIA GPU, install its driver: {DRIVERS}",
            )
        ]
    return [
        Finding(
            "GPU",
            f"{gpu.name}, compute capability {dotted(gpu.capability)}, "
            f"{gpu.memory / (1 << 30):.1f} GiB",
            wanted,
        )
        for gpu in machine.gpus
    ]


def _driver(machine: Machine) -> Finding:
    if machine.cuda is None:
        return Finding("driver", "none", "every backend but ort-cpu", f"install it: {DRIVERS}")
    major, minor = machine.cuda
    name = machine.driver or "of unknown version"
    newest = max(DRIVER_OF_CUDA)
    fix = None
    if major < newest:
        fix = f"for libraries made for CUDA {newest}, {DRIVER_OF_CUDA[newest]} or newer: {DRIVERS}"
    return Finding("driver", f"{name}, CUDA {major}.{minor}", "every backend but ort-cpu", fix)


def _onnxruntime(machine: Machine, find: Find) -> Finding:
    library = find("onnxruntime")
    wanted = "ort-cpu and ort-cuda"
    if library is None:
        return Finding("onnxruntime", "none", wanted, "pip install onnxruntime")
    import onnxruntime

    providers = [str(name) for name in onnxruntime.get_available_providers()]
    found = f"{library.version}: {', '.join(providers)}"
    lacks = machine.gpus and "CUDAExecutionProvider" not in providers
    fix = "pip uninstall onnxruntime && pip install onnxruntime-gpu" if lacks else None
    return Finding("onnxruntime", found, wanted, fix)


def _tensorrt(machine: Machine, find: Find) -> list[Finding]:
    library = find("tensorrt")
    if library is None:
        fix = "pip install 'avl[tensorrt]'"
        if not machine.gpus:
            fix += " on a machine with a GPU: it builds and runs nowhere else"
        return [Finding("tensorrt", "none", "tensorrt", fix)]
    found = Finding("tensorrt", _version_of(library) or "", "tensorrt")
    if library.release < OLDEST:
        return [
            found,
            Finding(
                "plugins",
                f"TensorRT {library.version} takes none: attention is its function body",
                "tensorrt",
                "pip install 'tensorrt>=10.9', or the JetPack that has it",
            ),
        ]
    return [found, Finding("plugins", "taken by this TensorRT", "tensorrt")]


def _rtx(find: Find) -> Finding:
    version = _version_of(find("tensorrt-rtx"))
    fix = "pip install 'avl[tensorrt-rtx]'" if version is None else None
    return Finding("tensorrt-rtx", version or "none", "tensorrt-rtx; builds without a GPU", fix)


def _plain(name: str, find: Find, needed_for: str, fix: str) -> Finding:
    version = _version_of(find(name))
    return Finding(name, version or "none", needed_for, fix if version is None else None)


def _kernels(machine: Machine) -> Finding:
    """The packaged kernels, and whether they serve the first GPU."""
    from avl_plugins import packaged

    wanted = "decoding on a GPU, and plugins"
    try:
        names = sorted(packaged.index()["kernels"])
    except OSError as error:
        return Finding("kernels", f"none: {error}", wanted, "install avl anew")
    try:
        served = [packaged.kernel(one, gpu.capability) for gpu in machine.gpus[:1] for one in names]
    except AvlError as error:
        return Finding("kernels", f"{len(names)} packaged", wanted, str(error))
    targets = sorted({kernel.target for kernel in served})
    found = f"{len(names)} packaged" + (f", PTX for {', '.join(targets)} here" if targets else "")
    return Finding("kernels", found, wanted)


def _cpu_kernels() -> Finding:
    """Whether ort-cpu has kernels of ours, without which it takes standard ops and NumPy."""
    wanted = "faster decoding on ort-cpu"
    library = cpu.library()
    if library is not None:
        return Finding("CPU kernels", f"compiled, {library.name}", wanted)
    if os.environ.get(cpu.SWITCH) == "off":
        return Finding("CPU kernels", "switched off", wanted, f"unset {cpu.SWITCH}")
    fix = "install a C compiler (Debian: gcc), then python -m avl_plugins.cpu.build"
    return Finding("CPU kernels", "not compiled", wanted, fix)


def _version_of(library: Library | None) -> str | None:
    if library is None:
        return None
    return library.version + (f" for CUDA {library.cuda}" if library.cuda is not None else "")

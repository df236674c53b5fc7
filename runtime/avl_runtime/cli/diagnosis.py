"""What this machine has for each backend, and what would install the rest."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from avl_plugins import cpu
from avl_plugins.cpu.host import host
from avl_plugins.errors import AvlError
from avl_plugins.tensorrt import OLDEST
from avl_runtime.machine.installation import (
    Requirement,
    checkout,
    extras,
    install,
    install_extra,
    python,
    too_old,
    uninstall,
)
from avl_runtime.machine.libraries import Library, installed
from avl_runtime.machine.probe import Machine
from avl_runtime.package.engine_sets import DRIVER_OF_CUDA, dotted

DRIVERS = "https://www.nvidia.com/drivers"

# What extras are for, in the order in which people want them.
USES = {
    "export": "avl-export",
    "eval": "avl-eval",
    "video": "video files",
    "heic": "HEIC pictures",
    "chat": "editing lines in a conversation",
    "serve": "avl-serve",
    "tensorrt-rtx": "avl-build",
    "tensorrt": "avl-build",
    "cuda": "decoding on a GPU",
    "kernels": "compiling the packaged kernels anew",
}
INTERNAL = ("dev",)
OWN = ("tensorrt", "tensorrt-rtx")  # have a finding of their own

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
        Finding("avl", _avl(find), "everything"),
        *_gpus(machine),
        _driver(machine),
        _onnxruntime(machine, find),
        *_tensorrt(machine, find),
        _rtx(find),
        *_optional(find),
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
        return Finding("onnxruntime", "none", wanted, install("onnxruntime"))
    import onnxruntime

    providers = [str(name) for name in onnxruntime.get_available_providers()]
    found = f"{library.version}: {', '.join(providers)}"
    lacks = machine.gpus and "CUDAExecutionProvider" not in providers
    fix = f"{uninstall('onnxruntime')} && {install('onnxruntime-gpu[cuda,cudnn]')}"
    return Finding("onnxruntime", found, wanted, fix if lacks else None)


def _tensorrt(machine: Machine, find: Find) -> list[Finding]:
    library = find("tensorrt")
    if library is None:
        fix = install_extra("tensorrt")
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
                f"{install('tensorrt>=10.9')}, or the JetPack that has it",
            ),
        ]
    return [found, Finding("plugins", "taken by this TensorRT", "tensorrt")]


def _rtx(find: Find) -> Finding:
    version = _version_of(find("tensorrt-rtx"))
    fix = install_extra("tensorrt-rtx") if version is None else None
    return Finding("tensorrt-rtx", version or "none", "tensorrt-rtx; builds without a GPU", fix)


def _optional(find: Find) -> list[Finding]:
    """The packages of all extras, but those that have a finding of their own."""
    known = extras()
    names = [name for name in USES if name in known]
    names += [name for name in known if name not in USES and name not in INTERNAL]
    users: dict[str, list[str]] = {}
    for extra in names:
        for one in known[extra]:
            users.setdefault(one.name, []).append(extra)
    return [
        _package(one, find, users[one.name])
        for extra in names
        for one in known[extra]
        if one.applies and users[one.name][0] == extra and one.name not in OWN
    ]


def _package(needed: Requirement, find: Find, users: Sequence[str]) -> Finding:
    library = find(needed.name)
    what_for = " and ".join(dict.fromkeys(USES.get(extra, f"extra {extra}") for extra in users))
    found, fix = _version_of(library) or "none", install_extra(users[0])
    if library is not None:
        if not too_old(library, needed):
            return Finding(needed.name, found, what_for)
        found += f", older than {needed.oldest}"
    return Finding(needed.name, found, what_for, fix)


def _avl(find: Find) -> str:
    folder = checkout()
    version = _version_of(find("avl")) or "not installed"
    return version if folder is None else f"{version}, from {folder}"


def _kernels(machine: Machine) -> Finding:
    """The packaged kernels, and whether they serve the first GPU."""
    from avl_plugins.cuda import packaged

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
    build = python("-m", "avl_plugins.cpu.build")
    try:
        kernels = host()
    except OSError as error:
        return Finding("CPU kernels", f"damaged: {error}", wanted, build)
    if kernels is not None:
        return Finding("CPU kernels", f"compiled; here {kernels.instructions()}", wanted)
    if os.environ.get(cpu.SWITCH) == "off":
        return Finding("CPU kernels", "switched off", wanted, f"unset {cpu.SWITCH}")
    fix = f"install a C compiler (Debian: gcc), then {build}"
    return Finding("CPU kernels", "not compiled", wanted, fix)


def _version_of(library: Library | None) -> str | None:
    if library is None:
        return None
    return library.version + (f" for CUDA {library.cuda}" if library.cuda is not None else "")

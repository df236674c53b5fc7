"""What this machine has for engines to run on, as the driver itself says: no library is needed."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CUDA = {"win32": "nvcuda.dll"}.get(sys.platform, "libcuda.so.1")
NVML = {"win32": "nvml.dll"}.get(sys.platform, "libnvidia-ml.so.1")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE

Load = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: `capability` as 89 for 8.9, `memory` in bytes."""

    name: str
    capability: int
    memory: int


@dataclass(frozen=True, slots=True)
class Machine:
    """GPUs in CUDA's order, and the driver.

    Attributes:
        platform: operating system and processor, as linux-x86_64.
        driver: its version, such as "580.65.06"; None if it cannot be told.
        cuda: the newest version of CUDA that the driver has, (13, 0); None without a driver.
        trouble: why there are no GPUs, for people.
    """

    platform: str
    gpus: tuple[Gpu, ...]
    driver: str | None
    cuda: tuple[int, int] | None
    trouble: str | None


def this_platform() -> str:
    """Operating system and processor of this machine."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def probe(load: Load = ctypes.CDLL) -> Machine:
    """Look at this machine.

    Args:
        load: opens a library by name, and raises OSError if there is none.
    """
    try:
        cuda = load(CUDA)
    except OSError:
        return Machine(this_platform(), (), None, None, f"no NVIDIA driver: {CUDA} is missing")
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = (number.value // 1000, number.value % 1000 // 10)
    status = cuda.cuInit(0)
    if status not in (0, _NO_DEVICE):
        trouble = f"the driver refuses CUDA with error {status}"
        return Machine(this_platform(), (), _driver(load), version, trouble)
    gpus: tuple[Gpu, ...] = ()
    if status == 0:
        cuda.cuDeviceGetCount(ctypes.byref(number))
        gpus = tuple(_gpu(cuda, ordinal) for ordinal in range(number.value))
    return Machine(
        this_platform(), gpus, _driver(load), version, None if gpus else "the driver finds no GPU"
    )


def _gpu(cuda: Any, ordinal: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory = ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(name.value.decode(errors="replace"), 10 * major.value + minor.value, memory.value)


def _driver(load: Load) -> str | None:
    """The driver's version, which CUDA itself does not tell; boards like Jetson have no NVML."""
    try:
        nvml = load(NVML)
    except OSError:
        return None
    text = ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, len(text)):
        return None
    return text.value.decode(errors="replace")

"""One GPU and launches of the packaged kernels on it, through NVIDIA's driver: no Triton, no torch.

Arrays are addresses of device memory; whoever owns the memory (ONNX Runtime, torch, cuMemAlloc)
keeps it. Everything is asynchronous on the stream given.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from avl_plugins.cuda.packaged import KernelError, PackagedKernel, kernel
from avl_plugins.errors import AvlError
from avl_plugins.installation import install_extra

_GRID_LIMIT = (2**31 - 1, 65535, 65535)
_ALIGNMENT = 16  # bytes; the kernels load and store as many at a time

_ADVICE = {
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "update the NVIDIA driver to one of CUDA 12.0 or later",
    "CUDA_ERROR_JIT_COMPILER_NOT_FOUND": "install the driver's libnvidia-ptxjitcompiler",
    "CUDA_ERROR_INVALID_DEVICE": "pass the number of a GPU that nvidia-smi lists",
    "CUDA_ERROR_OUT_OF_MEMORY": "free memory of the GPU",
}


class CudaError(AvlError):
    """The CUDA driver is missing, or refused a call.

    Attributes:
        status: the driver's name for why it refused, such as "CUDA_ERROR_OUT_OF_MEMORY".
    """

    def __init__(self, message: str, status: str | None = None) -> None:
        super().__init__(message)
        self.status = status


def load_driver() -> ModuleType:
    """cuda-python's driver bindings, initialised.

    Raises:
        CudaError: cuda-python, the driver or a GPU is missing.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise CudaError(
            "expected cuda-python for GPU kernels, found none; run: "
            f"{install_extra('cuda')}, or use --backend ort-cpu"
        ) from error
    try:
        status = driver.cuInit(0)[0]
    except Exception as error:  # its own error types differ between versions
        raise CudaError(
            f"expected an NVIDIA driver, found none ({type(error).__name__}); "
            "install one, or use --backend ort-cpu"
        ) from error
    if status:
        raise CudaError(
            f"expected a GPU that CUDA can use, found {status.name}; "
            "check nvidia-smi, or use --backend ort-cpu"
        )
    found: ModuleType = driver
    return found


def compute_capability(ordinal: int = 0, driver: ModuleType | None = None) -> int:
    """Compute capability of a GPU, such as 89; makes no context on it.

    Raises:
        CudaError: as `load_driver`, or there is no such GPU.
    """
    driver = load_driver() if driver is None else driver
    names = driver.CUdevice_attribute
    handle = _call(driver, "cuDeviceGet", ordinal)
    major, minor = (
        _call(driver, "cuDeviceGetAttribute", attribute, handle)
        for attribute in (
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return 10 * int(major) + int(minor)


class Device:
    """One GPU and the packaged kernels loaded on it so far.

    Works in the GPU's primary context, as torch and ONNX Runtime do, and leaves the context that
    the calling thread has as it was.

    Attributes:
        capability: compute capability, such as 89.
    """

    def __init__(self, ordinal: int = 0, driver: ModuleType | None = None) -> None:
        """Open a GPU; `driver` is cuda-python's unless given.

        Raises:
            CudaError: as `load_driver`, or there is no such GPU.
        """
        self._driver = load_driver() if driver is None else driver
        self._functions: dict[str, tuple[PackagedKernel, Any]] = {}
        self.capability = compute_capability(ordinal, self._driver)
        handle = _call(self._driver, "cuDeviceGet", ordinal)
        self._context = _call(self._driver, "cuDevicePrimaryCtxRetain", handle)

    def launch(self, name: str, values: Mapping[str, int], stream: int = 0) -> None:
        """Launch the packaged kernel `name`, such as "update-1024".

        Args:
            values: addresses and sizes by the names in the kernel's signature (without "_ptr"),
                and the dimensions its grid names (`catalog.GRIDS`). Addresses are 16-byte aligned.

        Raises:
            KernelError: no such kernel, or a value is missing, out of range or not aligned.
            CudaError: the driver refused to load or launch it.
        """
        with self._current():
            packaged, function = self._function(name)
            grid, arguments, kinds = launch_arguments(packaged, values)
            block = (packaged.threads, 1, 1)
            parameters = (arguments, kinds)
            _call(
                self._driver,
                "cuLaunchKernel",
                *(function, *grid, *block, packaged.shared, stream, parameters, 0),
            )

    def call(self, function: str, *arguments: Any) -> Any:
        """What a function of the driver gives in this GPU's context: None, one thing or several.

        Raises:
            CudaError: the driver refused.
        """
        with self._current():
            return _call(self._driver, function, *arguments)

    @contextmanager
    def _current(self) -> Iterator[None]:
        _call(self._driver, "cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            _call(self._driver, "cuCtxPopCurrent")

    def _function(self, name: str) -> tuple[PackagedKernel, Any]:
        if name not in self._functions:
            packaged = kernel(name, self.capability)
            # The driver reads PTX up to a zero byte.
            module = _call(self._driver, "cuModuleLoadData", packaged.ptx().encode() + b"\0")
            function = _call(self._driver, "cuModuleGetFunction", module, packaged.entry.encode())
            self._functions[name] = packaged, function
        return self._functions[name]


def launch_arguments(
    packaged: PackagedKernel, values: Mapping[str, int]
) -> tuple[tuple[int, int, int], tuple[int, ...], tuple[type, ...]]:
    """What a launch of a kernel is given: its grid, its arguments and their C types.

    Args:
        values: as for `Device.launch`.

    Raises:
        KernelError: as `Device.launch`.
    """
    name = packaged.variant.name
    try:
        grid = packaged.variant.grid(values)
        beyond = packaged.variant.beyond(values)
        arguments = tuple(values[argument] for argument, _ in packaged.arguments)
    except KeyError as missing:
        raise KernelError(
            f"{name}: expected a value for {missing}, found none; pass it"
        ) from missing
    if beyond:
        raise KernelError(f"{name}: expected {beyond}; take another kernel, or split the call")
    if not all(0 < size <= limit for size, limit in zip(grid, _GRID_LIMIT, strict=True)):
        raise KernelError(
            f"{name}: expected a grid of 1 to {_GRID_LIMIT} programs, found {grid}; split the batch"
        )
    for (argument, kind), value in zip(packaged.arguments, arguments, strict=True):
        if kind.startswith("*") and (value <= 0 or value % _ALIGNMENT):
            raise KernelError(
                f"{name}: expected {argument} at a multiple of {_ALIGNMENT} bytes, found "
                f"{value:#x}; pass the start of an allocation"
            )
    kinds = tuple(
        ctypes.c_void_p if kind.startswith("*") else ctypes.c_int32
        for _, kind in packaged.arguments
    )
    return grid, arguments, kinds


def _call(driver: ModuleType, function: str, *arguments: Any) -> Any:
    """What a driver function gives: None, one thing or several."""
    status, *results = getattr(driver, function)(*arguments)
    if status:
        advice = _ADVICE.get(status.name, "check the driver and the sizes")
        told = f"{function}: expected success, found {status.name}; {advice}"
        raise CudaError(told, status.name)
    return (results or [None])[0] if len(results) < 2 else tuple(results)

"""The device seam on an NVIDIA GPU, through cuda-python alone."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cuda import driver as cuda
from avl_runtime.execute.device.protocol import DeviceError, OutOfDeviceMemoryError

_NAME_BYTES = 128
_OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"


class CudaDevice:
    """One GPU and a stream of its own; see `protocol.Device`."""

    def __init__(self, ordinal: int = 0, driver: ModuleType | None = None) -> None:
        """
        Args:
            driver: cuda-python's, unless given.

        Raises:
            CudaError: cuda-python, the driver or the GPU is missing.
        """
        self._driver = cuda.load_driver() if driver is None else driver
        self._gpu = cuda.Device(ordinal, self._driver)
        handle = self._call("cuDeviceGet", ordinal)
        name: bytes = self._call("cuDeviceGetName", _NAME_BYTES, handle)
        self.name = name.split(b"\0")[0].decode(errors="replace")
        # Not the default stream: it waits for others, and cannot be recorded.
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = self._call("cuStreamCreate", flags)
        self.stream = int(self._stream)

    def memory(self) -> tuple[int, int]:
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def allocate(self, nbytes: int) -> int:
        try:
            return int(self._gpu.call("cuMemAlloc", nbytes))
        except cuda.CudaError as error:
            if error.status == _OUT_OF_MEMORY:
                raise OutOfDeviceMemoryError(nbytes, *self.memory()) from error
            raise _refused("cuMemAlloc", error) from error

    def free(self, address: int) -> None:
        self.synchronize()
        self._call("cuMemFree", address)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        pointer = int(self._call("cuMemAllocHost", nbytes))
        memory = (ctypes.c_uint8 * nbytes).from_address(pointer)
        # Arrays made of it, and their views, keep `memory` alive.
        freed = weakref.finalize(memory, self._call, "cuMemFreeHost", pointer)
        freed.atexit = False
        return np.ctypeslib.as_array(memory)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        self._call("cuMemcpyHtoDAsync", address, _start(array), array.nbytes, self._stream)

    def download(self, array: NDArray[Any], address: int) -> None:
        self._call("cuMemcpyDtoHAsync", _start(array), address, array.nbytes, self._stream)

    def copy(self, to: int, origin: int, nbytes: int) -> None:
        self._call("cuMemcpyDtoDAsync", to, origin, nbytes, self._stream)

    def zero(self, address: int, nbytes: int) -> None:
        self._call("cuMemsetD8Async", address, 0, nbytes, self._stream)

    def write_column(self, address: int, pitch: int, value: int, rows: int) -> None:
        self._call("cuMemsetD2D32Async", address, pitch, value, 1, rows, self._stream)

    def launch(self, name: str, values: Mapping[str, int]) -> None:
        self._gpu.launch(name, values, self._stream)

    def record(self, work: Callable[[], None]) -> CudaGraph:
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with _nothing_collected():
            self._call("cuStreamBeginCapture", self._stream, mode)
            try:
                work()
            except BaseException:
                with suppress(DeviceError):  # the recording is no good
                    self._call("cuStreamEndCapture", self._stream)
                raise
            graph = self._call("cuStreamEndCapture", self._stream)
        try:
            return CudaGraph(self, self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def replay(self, executable: Any) -> None:
        """Queue an executable graph."""
        self._call("cuGraphLaunch", executable, self._stream)

    def forget(self, executable: Any) -> None:
        """Free an executable graph."""
        self._call("cuGraphExecDestroy", executable)

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        """As `avl_plugins.cuda.driver.Device.call`.

        Raises:
            DeviceError: the driver refused.
        """
        try:
            return self._gpu.call(function, *arguments)
        except cuda.CudaError as error:
            raise _refused(function, error) from error


class CudaGraph:
    """An executable CUDA graph."""

    def __init__(self, device: CudaDevice, executable: Any) -> None:
        self._device, self._executable = device, executable
        freed = weakref.finalize(self, device.forget, executable)
        freed.atexit = False

    def replay(self) -> None:
        self._device.replay(self._executable)


def _refused(function: str, error: cuda.CudaError) -> DeviceError:
    way_out = "use shorter prompts or --backend ort-cpu"
    if error.status != _OUT_OF_MEMORY:
        way_out = "check the driver with avl-doctor, or use --backend ort-cpu"
    return DeviceError(f"{function}: expected success, found {error.status}; {way_out}")


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keep Python from collecting garbage: what is freed inside a recording breaks it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _start(array: NDArray[Any]) -> int:
    """The address of an array that is copied whole."""
    if not array.flags.c_contiguous:
        raise ValueError("expected a C-contiguous array")
    return int(array.ctypes.data)

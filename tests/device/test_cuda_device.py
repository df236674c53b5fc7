"""What the CUDA half of the seam asks of cuda-python, by a driver that notes and half obeys."""

from __future__ import annotations

import ctypes
import gc
import inspect
import re
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from avl_runtime.execute.device import cuda
from avl_runtime.execute.device.memory import Memory
from avl_runtime.execute.device.protocol import DeviceError, OutOfDeviceMemoryError


class Result(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_LAUNCH_FAILED = 719


OK = Result.CUDA_SUCCESS


class Driver(SimpleNamespace):
    """Device memory is host memory; every call is noted, and needs the primary context."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=8,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=9,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=58,
    )
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING="non-blocking")
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread")
    FREE = ("cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuDeviceGetAttribute", "cuDeviceGetName")

    def __init__(self) -> None:
        super().__init__(calls=[], current=0, memory={}, room=10_000, fails=set())

    def __getattribute__(self, name: str) -> Any:
        if not re.match("cu[A-Z]", name):
            return super().__getattribute__(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            if name in self.fails:
                return (Result.CUDA_ERROR_LAUNCH_FAILED, None)
            if name == "cuCtxPushCurrent":
                self.current += 1
                return (OK,)
            if name == "cuCtxPopCurrent":
                self.current -= 1
                return (OK, None)
            assert self.current == 1 or name in self.FREE, f"{name} without a context"
            return getattr(self, f"do_{name}", lambda *_: (OK,))(*arguments)

        return call

    def do_cuDeviceGet(self, ordinal: int) -> Any:
        return OK, ordinal

    def do_cuDeviceGetAttribute(self, attribute: int, device: int) -> Any:
        return OK, attribute

    def do_cuDeviceGetName(self, length: int, device: int) -> Any:
        return OK, b"GPU of a test" + bytes(length - 13)

    def do_cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return OK, "context"

    def do_cuStreamCreate(self, flags: str) -> Any:
        return OK, 77

    def do_cuMemGetInfo(self) -> Any:
        return OK, self.room, 20_000

    def do_cuMemAlloc(self, nbytes: int) -> Any:
        if nbytes > self.room:
            return Result.CUDA_ERROR_OUT_OF_MEMORY, None
        self.room -= nbytes
        memory = ctypes.create_string_buffer(nbytes)
        self.memory[ctypes.addressof(memory)] = memory
        return OK, ctypes.addressof(memory)

    do_cuMemAllocHost = do_cuMemAlloc

    def do_cuMemFree(self, address: int) -> Any:
        self.room += len(self.memory.pop(address))
        return (OK,)

    do_cuMemFreeHost = do_cuMemFree

    def do_cuMemcpyHtoDAsync(self, to: int, origin: int, nbytes: int, stream: int) -> Any:
        ctypes.memmove(to, origin, nbytes)
        return (OK,)

    do_cuMemcpyDtoHAsync = do_cuMemcpyDtoDAsync = do_cuMemcpyHtoDAsync

    def do_cuMemsetD8Async(self, address: int, value: int, nbytes: int, stream: int) -> Any:
        ctypes.memset(address, value, nbytes)
        return (OK,)

    def do_cuMemsetD2D32Async(
        self, address: int, pitch: int, value: int, width: int, height: int, stream: int
    ) -> Any:
        for row in range(height):
            for column in range(width):
                ctypes.c_uint32.from_address(address + row * pitch + 4 * column).value = value
        return (OK,)

    def do_cuStreamEndCapture(self, stream: int) -> Any:
        return OK, "graph"

    def do_cuGraphInstantiate(self, graph: str, flags: int) -> Any:
        return OK, "executable"

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, *arguments in self.calls if called == name]


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def device(driver: Driver) -> cuda.CudaDevice:
    return cuda.CudaDevice(0, driver)  # type: ignore[arg-type]


def test_it_says_what_it_is(device: cuda.CudaDevice, driver: Driver) -> None:
    assert (device.name, device.stream) == ("GPU of a test", 77)
    assert driver.named("cuStreamCreate") == [["non-blocking"]]
    assert driver.current == 0


def test_copies(device: cuda.CudaDevice, driver: Driver) -> None:
    data = np.arange(24, dtype=np.int16).reshape(2, 12)
    one, other = device.allocate(48), device.allocate(48)
    device.upload(one, data)
    device.copy(other, one, 48)
    found = np.empty_like(data)
    device.download(found, other)
    device.synchronize()
    assert np.array_equal(found, data)
    device.zero(other, 20)
    device.write_column(other + 24, 12, 0x01020304, 2)
    device.download(found, other)
    expected = data.reshape(-1).copy()
    expected[:10] = 0
    expected[[12, 13, 18, 19]] = (0x0304, 0x0102) * 2
    assert np.array_equal(found.reshape(-1), expected)
    with pytest.raises(ValueError, match="C-contiguous"):
        device.upload(one, data.T)
    streams = {arguments[-1] for name, *arguments in driver.calls if name.endswith("Async")}
    assert streams == {77}


def test_pinned_memory_is_freed_with_its_last_view(device: cuda.CudaDevice, driver: Driver) -> None:
    array = device.pinned(64)
    view = array[16:32].view(np.float32)
    view[:] = 1
    del array
    gc.collect()
    assert not driver.named("cuMemFreeHost")
    del view
    gc.collect()
    assert len(driver.named("cuMemFreeHost")) == 1


def test_out_of_memory(device: cuda.CudaDevice, driver: Driver) -> None:
    memory = Memory(device)
    kept = memory.allocate("active", 9000)
    with pytest.raises(OutOfDeviceMemoryError) as error:
        memory.allocate("active", 2000)
    assert (error.value.wanted, error.value.free, error.value.total) == (2000, 1000, 20_000)
    assert memory.used["active"] == memory.peak == kept.nbytes == 9000
    del kept
    assert memory.used["active"] == 0
    assert driver.room == 10_000
    memory.allocate("active", 9900, zero=True)


def test_other_failures_name_the_call(device: cuda.CudaDevice, driver: Driver) -> None:
    driver.fails.add("cuStreamSynchronize")
    with pytest.raises(DeviceError, match="cuStreamSynchronize: expected success, found CUDA_ERRO"):
        device.synchronize()
    assert driver.current == 0


def test_recording(device: cuda.CudaDevice, driver: Driver) -> None:
    address, kept = device.allocate(16), []
    graph = device.record(lambda: (device.zero(address, 16), kept.append(gc.isenabled())))
    assert (kept, gc.isenabled()) == ([False], True)
    graph.replay()
    graph.replay()
    names = [name for name, *_ in driver.calls if "Ctx" not in name]
    begin = names.index("cuStreamBeginCapture")
    assert names[begin : begin + 7] == [
        "cuStreamBeginCapture",
        "cuMemsetD8Async",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
        "cuGraphDestroy",
        "cuGraphLaunch",
        "cuGraphLaunch",
    ]
    del graph
    assert driver.named("cuGraphExecDestroy") == [["executable"]]


def test_a_recording_that_fails_is_ended(device: cuda.CudaDevice, driver: Driver) -> None:
    def work() -> None:
        raise DeviceError("expected this")

    with pytest.raises(DeviceError, match="expected this"):
        device.record(work)
    assert len(driver.named("cuStreamEndCapture")) == 1
    assert not driver.named("cuGraphInstantiate")


def test_cuda_python_has_these_functions_with_as_many_arguments() -> None:
    from cuda.bindings import driver as real

    source = inspect.getsource(cuda)
    source = " ".join(source.split())
    calls = re.findall(r'[._]call\( ?"(cu[A-Z]\w+)"((?:, [\w.]+(?:\(\w+\))?)*)', source)
    assert len(calls) > 15
    for name, arguments in calls:
        given = arguments.count(",")
        declared = getattr(real, name).__doc__.strip().split("\n")[0]
        inside = declared[declared.index("(") + 1 : declared.rindex(")")]
        wanted = len([part for part in inside.split(",") if part.strip()])
        assert given == wanted, (name, arguments, declared)
    assert real.CUstream_flags.CU_STREAM_NON_BLOCKING
    assert hasattr(real.CUstreamCaptureMode, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")
    assert real.CUresult(2).name == "CUDA_ERROR_OUT_OF_MEMORY"

"""Launches through the CUDA driver, recorded by a driver that only notes what it is asked."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest

from avl_plugins.cuda.driver import CudaError, Device, compute_capability, load_driver
from avl_plugins.errors import AvlError
from avl_plugins.installation import install_extra
from avl_plugins.kernels.catalog import evaluate


class Result(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_PTX = 218
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222


class Driver(SimpleNamespace):
    """Answers as a GPU of compute capability 8.9."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=8,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=9,
    )

    def __init__(self, **answers: Any) -> None:
        super().__init__(modules=[], launches=[], contexts=[], retained=[], answers=answers)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return self.answers.get("cuDeviceGet", (Result.CUDA_SUCCESS, f"device {ordinal}"))

    def cuDeviceGetAttribute(self, attribute: int, device: str) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, attribute

    def cuDevicePrimaryCtxRetain(self, device: str) -> tuple[Any, ...]:
        self.retained.append(device)
        return Result.CUDA_SUCCESS, f"context of {device}"

    def cuCtxPushCurrent(self, context: str) -> tuple[Any, ...]:
        self.contexts.append(context)
        return (Result.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, self.contexts.pop()

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        assert self.contexts == ["context of device 0"]
        self.modules.append(image)
        return self.answers.get("cuModuleLoadData", (Result.CUDA_SUCCESS, image))

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[Any, ...]:
        assert b".entry " + name + b"(" in module
        return Result.CUDA_SUCCESS, name.decode()

    def cuLaunchKernel(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        assert self.contexts == ["context of device 0"]
        self.launches.append((function, arguments))
        return (Result.CUDA_SUCCESS,)


def test_a_launch() -> None:
    """Of the grid that the values make, with addresses and scalars in the PTX's order."""
    driver = Driver()
    device = Device(0, driver)  # type: ignore[arg-type]
    values = {"table": 256, "source": 512, "destination": 768, "S": 3, "M": 50, "D": 80}
    values |= {"B": 2, "Hkv": 4, "L": 6}
    device.launch("update-64", values, stream=7)
    device.launch("update-64", values)
    first, second = driver.launches
    function, (*recipe, (arguments, kinds), extra) = first
    assert function == "update"
    assert recipe == [10, 8, 6, 128, 1, 1, 0, 7]  # grid, block, shared memory, stream
    assert arguments == (256, 512, 768, 3, 50, 80)
    assert kinds == (*[ctypes.c_void_p] * 3, *[ctypes.c_int32] * 3)
    assert extra == 0
    assert second[1][7] == 0
    (module,) = driver.modules  # loaded once
    assert module.split(b")", 1)[0].count(b".param") == len(arguments)
    assert module.endswith(b"\0")


def test_missing_values_and_impossible_grids() -> None:
    device = Device(0, Driver())  # type: ignore[arg-type]
    with pytest.raises(AvlError, match="update-64: expected a value for 'D', found none"):
        device.launch("update-64", {"B": 1, "Hkv": 1, "L": 1})
    values = {"table": 256, "source": 512, "destination": 768, "S": 1, "M": 64}
    with pytest.raises(AvlError, match="expected a grid of 1 to"):
        device.launch("update-64", {**values, "B": 70000, "Hkv": 1, "L": 1, "D": 128})
    with pytest.raises(AvlError, match="expected a grid of 1 to"):
        device.launch("update-64", {**values, "B": 1, "Hkv": 1, "L": 0, "D": 128})


def test_more_than_a_kernel_takes_is_refused() -> None:
    device = Device(0, Driver())  # type: ignore[arg-type]
    values = {"table": 256, "source": 512, "destination": 768, "S": 1, "M": 64, "D": 80}
    values |= {"B": 1, "Hkv": 1, "L": 1}
    device.launch("update-64", values)
    with pytest.raises(AvlError, match="update-64: expected M <= MP = 64, found 65"):
        device.launch("update-64", {**values, "M": 65})
    with pytest.raises(AvlError, match=r"expected cdiv\(D, W\) \* W <= D = 72, found 80"):
        device.launch("update-64", {**values, "D": 72})


@pytest.mark.parametrize("address", [0, 8, 513])
def test_addresses_that_are_not_aligned_are_refused(address: int) -> None:
    """They would end every later launch of the process too."""
    driver = Driver()
    device = Device(0, driver)  # type: ignore[arg-type]
    values = {"table": 256, "source": address, "destination": 768, "S": 1, "M": 64, "D": 80}
    with pytest.raises(AvlError, match="update-64: expected source at a multiple of 16 bytes"):
        device.launch("update-64", {**values, "B": 1, "Hkv": 1, "L": 1})
    assert not driver.launches


def test_what_the_driver_refuses_is_named() -> None:
    with pytest.raises(CudaError, match="cuDeviceGet: expected success, found CUDA_ERROR_INVALID"):
        Device(0, Driver(cuDeviceGet=(Result.CUDA_ERROR_INVALID_PTX, None)))  # type: ignore[arg-type]
    driver = Driver(cuModuleLoadData=(Result.CUDA_ERROR_UNSUPPORTED_PTX_VERSION, None))
    with pytest.raises(CudaError, match=r"UNSUPPORTED_PTX_VERSION; update the NVIDIA driver to"):
        Device(0, driver).launch("update-64", {})  # type: ignore[arg-type]
    assert driver.contexts == []  # the caller's context is current again


def test_a_call_gives_what_the_driver_gives_in_the_gpus_context() -> None:
    driver, seen = Driver(), []

    def answer(*results: Any) -> Any:
        def function(*arguments: Any) -> tuple[Any, ...]:
            seen.append((arguments, list(driver.contexts)))
            return results

        return function

    ok = Result.CUDA_SUCCESS
    driver.cuNothing, driver.cuOne, driver.cuTwo = answer(ok), answer(ok, 7), answer(ok, 7, 8)
    driver.cuRefused = answer(Result.CUDA_ERROR_INVALID_PTX, None)
    device = Device(0, driver)  # type: ignore[arg-type]
    assert device.call("cuNothing", 1, 2) is None
    assert device.call("cuOne") == 7
    assert device.call("cuTwo") == (7, 8)
    with pytest.raises(CudaError, match="cuRefused: expected success, found CUDA_ERROR") as error:
        device.call("cuRefused")
    assert error.value.status == "CUDA_ERROR_INVALID_PTX"
    context = ["context of device 0"]
    assert seen == [((1, 2), context), ((), context), ((), context), ((), context)]
    assert driver.contexts == []


def test_asking_for_the_capability_takes_no_context() -> None:
    driver = Driver()
    assert compute_capability(0, driver) == 89  # type: ignore[arg-type]
    assert driver.retained == []
    assert Device(0, driver).capability == 89  # type: ignore[arg-type]
    assert driver.retained == ["device 0"]


def test_without_cuda_python_the_message_says_so() -> None:
    code = """
import sys
sys.modules["cuda.bindings"] = None
sys.modules["triton"] = None
sys.modules["torch"] = None
from avl_plugins.cuda.driver import Device
from avl_plugins.errors import AvlError
try:
    Device()
except AvlError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert install_extra("cuda") in done.stdout
    assert "expected cuda-python for GPU kernels, found none; run: " in done.stdout


def test_without_a_driver_the_message_says_so() -> None:
    class Absent:
        def cuInit(self, flags: int) -> tuple[Any, ...]:
            raise RuntimeError("no libcuda")

    code = SimpleNamespace(driver=Absent())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cuda.bindings", code)
        with pytest.raises(CudaError, match="expected an NVIDIA driver, found none"):
            load_driver()
        code.driver = SimpleNamespace(cuInit=lambda flags: (Result.CUDA_ERROR_INVALID_PTX,))
        with pytest.raises(CudaError, match="expected a GPU that CUDA can use"):
            load_driver()


def test_expressions() -> None:
    assert (
        evaluate("cdiv(S * G, BM) + 2 * (D // W)", {"S": 5, "G": 7, "BM": 16, "D": 96, "W": 32})
        == 9
    )
    with pytest.raises(KeyError):
        evaluate("S", {})
    for wrong in ("S - 1", "S.real", "max(S, 1)", "S[0]"):
        with pytest.raises(ValueError, match="expected names, numbers"):
            evaluate(wrong, {"S": 1})


HIDDEN = "this cuda-python does not show how it hands parameters over"


def test_cuda_python_lays_parameters_out_as_the_ptx_reads_them() -> None:
    """Each parameter behind a pointer of its own: 8 bytes for an address, 4 for a scalar."""
    driver = pytest.importorskip("cuda.bindings.driver")
    helper = getattr(driver, "_HelperKernelParams", None)
    if helper is None:
        pytest.skip(HIDDEN)
    packed = helper(((0x1234567890AB, 7, -3), (ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)))
    if not hasattr(packed, "ckernelParams"):
        pytest.skip(HIDDEN)
    address, first, second = (ctypes.c_void_p * 3).from_address(packed.ckernelParams)
    assert ctypes.c_uint64.from_address(address).value == 0x1234567890AB
    assert ctypes.c_int32.from_address(first).value == 7
    assert ctypes.c_int32.from_address(second).value == -3


def test_cuda_python_reads_a_module_and_its_results_as_they_are_used() -> None:
    """Bytes are taken where the driver expects an address; success is false."""
    driver = pytest.importorskip("cuda.bindings.driver")
    image = b"ptx\0"
    if hasattr(driver, "_HelperInputVoidPtr"):
        assert ctypes.string_at(driver._HelperInputVoidPtr(image).cptr) == b"ptx"
    assert not driver.CUresult.CUDA_SUCCESS
    assert driver.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    names = driver.CUdevice_attribute
    assert names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    for name in vars(Driver):
        assert not name.startswith("cu") or callable(getattr(driver, name))

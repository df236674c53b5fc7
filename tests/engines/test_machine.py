"""What a driver says, told by made-up ones."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from avl_runtime.machine import probe as machine
from avl_runtime.machine.probe import Gpu, probe


class Driver:
    """libcuda as `probe` calls it."""

    def __init__(self, version: int = 13000, status: int = 0, gpus: tuple[Gpu, ...] = ()) -> None:
        self.version, self.status, self.gpus = version, status, gpus

    def cuDriverGetVersion(self, number: Any) -> int:
        number._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, number: Any) -> int:
        number._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, buffer: Any, size: int, device: Any) -> int:
        buffer.value = self.gpus[device.value].name.encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        major, minor = divmod(self.gpus[device.value].capability, 10)
        value._obj.value = {75: major, 76: minor}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, value: Any, device: Any) -> int:
        value._obj.value = self.gpus[device.value].memory
        return 0


class Management:
    """libnvidia-ml as `probe` calls it."""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlSystemGetDriverVersion(self, buffer: Any, size: int) -> int:
        buffer.value = b"580.65.06"
        return 0


def look(**libraries: Any) -> machine.Machine:
    def load(name: str) -> Any:
        key = {machine.CUDA: "cuda", machine.NVML: "nvml"}[name]
        if key not in libraries:
            raise OSError(f"{name}: cannot open shared object file")
        return libraries[key]

    return probe(load)


def test_gpus() -> None:
    gpus = (Gpu("NVIDIA GeForce RTX 5090", 120, 32 << 30), Gpu("NVIDIA A100", 80, 80 << 30))
    found = look(cuda=Driver(13010, gpus=gpus), nvml=Management())
    assert found.gpus == gpus
    assert (found.driver, found.cuda, found.trouble) == ("580.65.06", (13, 1), None)


def test_no_management_library() -> None:
    found = look(cuda=Driver(12060, gpus=(Gpu("Orin", 87, 64 << 30),)))
    assert (found.driver, found.cuda) == (None, (12, 6))


@pytest.mark.parametrize(
    ("driver", "trouble"),
    [
        (Driver(status=100), "the driver finds no GPU"),
        (Driver(status=803), "the driver refuses CUDA with error 803"),
        (Driver(), "the driver finds no GPU"),
    ],
)
def test_a_driver_without_gpus(driver: Driver, trouble: str) -> None:
    found = look(cuda=driver, nvml=Management())
    assert found.gpus == ()
    assert found.trouble == trouble
    assert found.driver == "580.65.06"


def test_no_driver() -> None:
    found = look()
    assert (found.gpus, found.driver, found.cuda) == ((), None, None)
    assert found.trouble == f"no NVIDIA driver: {machine.CUDA} is missing"


def test_the_real_machine_can_be_asked() -> None:
    found = probe(ctypes.CDLL)
    assert found.platform == machine.this_platform()
    assert bool(found.gpus) == (found.trouble is None)

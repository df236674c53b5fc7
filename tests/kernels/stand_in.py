"""A GPU that is none: torch.cuda and the CUDA driver on a CPU, with kernels interpreted.

What a script does between these two is run as it would be on a GPU: packaged PTX is found, loaded
and launched with addresses in the order of its parameters. Times mean nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import sys
from contextlib import nullcontext
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import torch

from avl_plugins.cuda.packaged import index
from avl_plugins.kernels.catalog import VARIANTS

_DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
}


class Result(IntEnum):
    CUDA_SUCCESS = 0


class Driver(SimpleNamespace):
    """What cuda-python's driver offers, as far as `avl_plugins.cuda.driver` uses it."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0,
    )

    def __init__(self) -> None:
        super().__init__(launched=[])

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        return (Result.CUDA_SUCCESS,)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, ordinal

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, attribute

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, "context"

    def cuCtxPushCurrent(self, context: str) -> tuple[Any, ...]:
        return (Result.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:
        return Result.CUDA_SUCCESS, "context"

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        digest = hashlib.sha256(image.removesuffix(b"\0")).hexdigest()
        (name,) = (
            name
            for name, entry in index()["kernels"].items()
            if digest in [file["sha256"] for file in entry["files"]]
        )
        return Result.CUDA_SUCCESS, name

    def cuModuleGetFunction(self, module: str, entry: bytes) -> tuple[Any, ...]:
        assert entry.decode() == VARIANTS[module].kernel
        return Result.CUDA_SUCCESS, module

    def cuLaunchKernel(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        grid, block, (shared, _, (values, _), _) = arguments[:3], arguments[3:6], arguments[6:]
        variant, entry = VARIANTS[name], index()["kernels"][name]
        assert block == (32 * variant.warps, 1, 1)
        assert shared in [file["shared"] for file in entry["files"]]
        function = getattr(importlib.import_module(variant.module), variant.kernel)
        given = [
            _at(value, _DTYPES[kind[1:]]) if kind.startswith("*") else value
            for value, (_, kind) in zip(values, entry["arguments"], strict=True)
        ]
        function[grid](*given, **variant.constants)
        self.launched.append(name)
        return (Result.CUDA_SUCCESS,)


def _at(address: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of one element at an address; kernels take the address alone from it."""
    buffer = (ctypes.c_char * dtype.itemsize).from_address(address)
    return torch.frombuffer(buffer, dtype=dtype)


class Event:
    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return 1.0


def install() -> Driver:
    """Put the stand-ins where the scripts look; for a process that does nothing else."""
    driver = Driver()
    sys.modules["cuda.bindings"] = SimpleNamespace(driver=driver)  # type: ignore[assignment]
    properties = SimpleNamespace(L2_cache_size=0)
    for name, value in {
        "is_available": lambda: True,
        "init": lambda: None,
        "current_device": lambda: 0,
        "current_stream": lambda: SimpleNamespace(cuda_stream=0),
        "get_device_name": lambda: "none",
        "get_device_properties": lambda _: properties,
        "synchronize": lambda: None,
        "Stream": lambda: None,
        "stream": lambda _: nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph": lambda _, stream: nullcontext(),
        "Event": Event,
    }.items():
        assert hasattr(torch.cuda, name)
        setattr(torch.cuda, name, value)
    return driver

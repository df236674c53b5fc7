"""The packaged kernels on a GPU, through NVIDIA's driver alone: no Triton, no torch.

Arrays are addresses of device memory; whoever owns the memory (ONNX Runtime, torch, cuMemAlloc)
keeps it. Everything is asynchronous on the stream given.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from avl_plugins.errors import AvlError
from avl_plugins.kernels import catalog
from avl_plugins.packaged import KernelError, PackagedKernel, kernel

_GRID_LIMIT = (2**31 - 1, 65535, 65535)
_BYTES = 4  # of a float32 and of an int32


class CudaError(AvlError):
    """The CUDA driver is missing, or refused a call."""


def load_driver() -> ModuleType:
    """cuda-python's driver bindings, initialised.

    Raises:
        CudaError: cuda-python, the driver or a GPU is missing.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise CudaError(
            "expected cuda-python for GPU kernels, found none; "
            "pip install 'avl[cuda]', or use --backend ort-cpu"
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


class Device:
    """One GPU and the packaged kernels loaded on it so far.

    Attributes:
        capability: compute capability, such as 89.
        multiprocessors: how many it has.
    """

    def __init__(self, ordinal: int = 0, driver: ModuleType | None = None) -> None:
        """Open a GPU; `driver` is cuda-python's unless given.

        Raises:
            CudaError: as `load_driver`, or there is no such GPU.
        """
        self._driver = load_driver() if driver is None else driver
        self._functions: dict[str, tuple[PackagedKernel, Any]] = {}
        handle = self._call("cuDeviceGet", ordinal)
        self._context = self._call("cuDevicePrimaryCtxRetain", handle)
        names = self._driver.CUdevice_attribute
        major, minor, self.multiprocessors = (
            self._call("cuDeviceGetAttribute", attribute, handle)
            for attribute in (
                names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                names.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            )
        )
        self.capability: int = 10 * major + minor

    def launch(self, name: str, values: Mapping[str, int], stream: int = 0) -> None:
        """Launch the packaged kernel `name`, such as "decode-fp16-d128".

        Args:
            values: addresses and sizes by the names in the kernel's signature (without "_ptr"),
                and the dimensions its grid names (`catalog.GRIDS`).

        Raises:
            KernelError: no such kernel, or a value is missing or out of range.
            CudaError: the driver refused to load or launch it.
        """
        self._call("cuCtxSetCurrent", self._context)
        packaged, function = self._function(name)
        try:
            grid = packaged.variant.grid(values)
            arguments = tuple(values[argument] for argument, _ in packaged.arguments)
        except KeyError as missing:
            raise KernelError(f"{name}: expected a value for {missing}, found none; pass it") from (
                missing
            )
        if not all(0 < size <= limit for size, limit in zip(grid, _GRID_LIMIT, strict=True)):
            raise KernelError(
                f"{name}: expected a grid of 1 to {_GRID_LIMIT} programs, found {grid}; "
                "split the batch"
            )
        kinds = tuple(
            ctypes.c_void_p if kind.startswith("*") else ctypes.c_int32
            for _, kind in packaged.arguments
        )
        parameters = (arguments, kinds)
        block = (packaged.threads, 1, 1)
        self._call(
            "cuLaunchKernel", function, *grid, *block, packaged.shared, stream, parameters, 0
        )

    def _function(self, name: str) -> tuple[PackagedKernel, Any]:
        if name not in self._functions:
            packaged = kernel(name, self.capability)
            # The driver reads PTX up to a zero byte.
            module = self._call("cuModuleLoadData", packaged.ptx().encode() + b"\0")
            function = self._call("cuModuleGetFunction", module, packaged.entry.encode())
            self._functions[name] = packaged, function
        return self._functions[name]

    def _call(self, function: str, *arguments: Any) -> Any:
        """The one result of a driver function, or None where it has none."""
        status, *results = getattr(self._driver, function)(*arguments)
        if status:
            raise CudaError(
                f"{function}: expected success, found {status.name}; check the driver and the sizes"
            )
        return results[0] if results else None


@dataclass(frozen=True, slots=True)
class Sizes:
    """Dimensions of one call of SplitCacheAttention, as in `schema`; H is Hkv * G."""

    B: int
    Hkv: int
    G: int
    S: int
    A: int
    P: int
    R: int

    def values(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("B", "Hkv", "G", "S", "A", "P", "R")}


class Attention:
    """`avl::SplitCacheAttention` on a GPU, for one type and head_dim.

    Few query rows are split over the keys (`kernels.decode`), many take flash attention
    (`kernels.prefill`).
    """

    def __init__(self, device: Device, dtype: str, head_dim: int, scale: float) -> None:
        """
        Args:
            dtype: "float16" or "bfloat16".

        Raises:
            KernelError: nothing is packaged for the type and head_dim.
        """
        if dtype not in catalog.DTYPES or head_dim not in catalog.HEAD_DIMS:
            raise KernelError(
                f"expected a type of {catalog.DTYPES} and a head_dim of {catalog.HEAD_DIMS}, "
                f"found {dtype} and {head_dim}; use an ONNX Runtime backend"
            )
        self._device = device
        self._bits = catalog.scale_bits(scale)
        self._decode, self._prefill, self._prefill_mass = (
            catalog.variant_of(name, dtype, head_dim)
            for name in ("decode", "prefill", "prefill_mass")
        )

    def workspace_bytes(self, sizes: Sizes) -> int:
        """Device memory that a call needs.

        Its first 4 * B * Hkv bytes must be zero before the first call; calls leave them so.
        """
        return sum(size for _, size in self._layout(sizes))

    def __call__(
        self,
        sizes: Sizes,
        pointers: Mapping[str, int],
        workspace: int,
        stream: int = 0,
        *,
        rows: int | None = None,
        mass: bool = True,
    ) -> None:
        """Write `out` and the masses.

        Args:
            pointers: addresses of all inputs and outputs of the schema, 16-byte aligned.
            workspace: address of `workspace_bytes` of device memory.
            rows: active and parked rows of the longest sequence, where they are less than A + P:
                work is split for as many.
            mass: False leaves the masses unwritten and saves a launch.

        Raises:
            KernelError: as `Device.launch`.
            CudaError: as `Device.launch`.
        """
        values = {**sizes.values(), **pointers, "scale_bits": self._bits}
        at = workspace
        for name, size in self._layout(sizes):
            values[name] = at
            at += size
        if self._few(sizes):
            values["splits"] = self._splits(sizes, rows)
            self._device.launch(self._decode.name, values, stream)
            if mass:
                self._device.launch("decode_mass", values, stream)
        else:
            self._device.launch(self._prefill.name, values, stream)
            if mass:
                self._device.launch(self._prefill_mass.name, values, stream)

    def _few(self, sizes: Sizes) -> bool:
        return sizes.S * sizes.G <= catalog.DECODE_ROWS

    def _splits(self, sizes: Sizes, rows: int | None = None) -> int:
        rows = sizes.A + sizes.P if rows is None else rows
        return catalog.splits(sizes.B * sizes.Hkv, rows, self._device.multiprocessors)

    def _layout(self, sizes: Sizes) -> list[tuple[str, int]]:
        """Names and bytes of the workspace's parts, each aligned to 16 bytes."""
        pairs = sizes.B * sizes.Hkv
        counters = [("counter", pairs)]
        if self._few(sizes):
            rows, splits = catalog.DECODE_ROWS, self._splits(sizes)
            parts = [
                ("lse", pairs * rows),
                ("softmax", pairs * splits * 2 * rows),
                ("partial", pairs * splits * rows * self._decode.constants["DP"]),
                ("scores", pairs * rows * (sizes.A + sizes.P + sizes.S)),
            ]
        else:
            parts = [("lse", pairs * sizes.S * sizes.G)]
        return [(name, -(-count * _BYTES // 16) * 16) for name, count in counters + parts]

"""A device made of host memory, for tests: what is queued is done late, and what is wrong raises.

Memory begins as NaN, and freed memory becomes NaN. Every copy must lie in one living allocation and
every load and store of a kernel in one of them. Work waits until `synchronize`, so that a host that
reads or overwrites too early is found out. Kernels are the Triton source, interpreted, launched by
the packaged recipe: its grid and the order of its arguments; or, for whole replies, the naive
references. Recorded work is replayed with the addresses it was recorded with.
"""

from __future__ import annotations

import importlib
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from avl_plugins.cuda.driver import launch_arguments
from avl_plugins.cuda.packaged import kernel
from avl_runtime.execute.device.protocol import OutOfDeviceMemoryError
from device.naive_kernels import KERNELS

ALIGNMENT = 256
TYPES = {"*i64": "int64", "*i32": "int32", "*i16": "int16", "*i8": "int8"}
TYPES |= {"*fp32": "float32", "*fp16": "float16"}


class HostDevice:
    """See `avl_runtime.execute.device.protocol.Device`.

    Attributes:
        done: how often each kind of work was done, kernels by name.
    """

    name = "stand-in"
    stream = 0x5717
    capability = 89

    def __init__(self, total: int = 1 << 30, *, interpreted: bool = True) -> None:
        self.total = total
        self._interpreted = interpreted
        self.done: Counter[str] = Counter()
        self._memory: dict[int, tuple[np.ndarray[Any, Any], int]] = {}  # array, bytes asked for
        self._pinned: dict[int, int] = {}
        self._queue: list[Callable[[], None]] = []
        self._recording: list[Callable[[], None]] | None = None

    # Memory

    def memory(self) -> tuple[int, int]:
        return self.total - sum(nbytes for _, nbytes in self._memory.values()), self.total

    def allocate(self, nbytes: int) -> int:
        assert self._recording is None, "allocation inside a recording"
        assert nbytes > 0
        free, total = self.memory()
        if nbytes > free:
            raise OutOfDeviceMemoryError(nbytes, free, total)
        raw = np.full(-(-nbytes // 16) * 16 + ALIGNMENT, 0xFF, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        array = raw[start : start + -(-nbytes // 16) * 16]
        self._memory[array.ctypes.data] = (array, nbytes)
        return array.ctypes.data

    def free(self, address: int) -> None:
        assert self._recording is None, "freed inside a recording"
        self._finish()
        array, _ = self._memory.pop(address)
        array[:] = 0xFF

    def pinned(self, nbytes: int) -> np.ndarray[Any, Any]:
        array = np.full(nbytes, 0xFF, np.uint8)
        self._pinned[array.ctypes.data] = nbytes
        weakref.finalize(array, self._pinned.pop, array.ctypes.data)
        return array

    def bytes_at(self, address: int, nbytes: int) -> np.ndarray[Any, Any]:
        """Living memory as uint8."""
        for start, (array, size) in self._memory.items():
            if start <= address < start + size:
                assert address + nbytes <= start + size, (
                    f"{nbytes} bytes at offset {address - start} of an allocation of {size}"
                )
                return array[address - start : address - start + nbytes]
        raise AssertionError(f"no memory lives at {address:#x}")

    def read(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """A copy of what is in memory once all work is done."""
        self.synchronize()
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes_at(address, nbytes).copy().view(dtype).reshape(shape)

    def _is_pinned(self, array: np.ndarray[Any, Any]) -> bool:
        at = array.ctypes.data
        return any(start <= at < start + size for start, size in self._pinned.items())

    # Work

    def enqueue(self, work: Callable[[], None]) -> None:
        """Do `work` when its turn comes."""
        (self._queue if self._recording is None else self._recording).append(work)

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        assert array.flags.c_contiguous
        if not self._is_pinned(array):
            assert self._recording is None, "a recording reads memory that is not pinned"
            array = array.copy()

        def work() -> None:
            self.done["upload"] += 1
            self.bytes_at(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

        self.enqueue(work)

    def download(self, array: np.ndarray[Any, Any], address: int) -> None:
        assert array.flags.c_contiguous
        assert self._recording is None or self._is_pinned(array), "recorded into unpinned memory"

        def work() -> None:
            self.done["download"] += 1
            array.reshape(-1).view(np.uint8)[:] = self.bytes_at(address, array.nbytes)

        self.enqueue(work)

    def copy(self, to: int, origin: int, nbytes: int) -> None:
        def work() -> None:
            self.bytes_at(to, nbytes)[:] = self.bytes_at(origin, nbytes).copy()

        self.enqueue(work)

    def zero(self, address: int, nbytes: int) -> None:
        def work() -> None:
            self.bytes_at(address, nbytes)[:] = 0

        self.enqueue(work)

    def write_column(self, address: int, pitch: int, value: int, rows: int) -> None:
        assert pitch >= 4 and rows > 0

        def work() -> None:
            for row in range(rows):
                self.bytes_at(address + row * pitch, 4).view(np.uint32)[0] = value

        self.enqueue(work)

    def launch(self, name: str, values: Mapping[str, int]) -> None:
        packaged = kernel(name, self.capability)
        values = dict(values)
        grid, arguments, _ = launch_arguments(packaged, values)

        def work() -> None:
            self.done[name] += 1
            variant = packaged.variant
            if not self._interpreted:
                KERNELS[variant.kernel](self, values)
                return
            function = getattr(importlib.import_module(variant.module), variant.kernel)
            taken = [one.removesuffix("_ptr") for one in function.arg_names]
            names = [one for one, _ in packaged.arguments]
            assert names == [one for one in taken if one not in variant.constants]
            tensors = [
                self._tensor(value, kind) if kind.startswith("*") else value
                for value, (_, kind) in zip(arguments, packaged.arguments, strict=True)
            ]
            with self._within_bounds():
                function[grid](*tensors, **variant.constants)

        self.enqueue(work)

    def record(self, work: Callable[[], None]) -> Recording:
        assert self._recording is None
        self._recording = []
        try:
            work()
            return Recording(self, self._recording)
        finally:
            self._recording = None

    def synchronize(self) -> None:
        assert self._recording is None, "synchronised inside a recording"
        self.done["synchronize"] += 1
        self._finish()

    def _finish(self) -> None:
        while self._queue:
            self._queue.pop(0)()

    # What kernels see

    def _tensor(self, address: int, kind: str) -> Any:
        import torch

        dtype = np.dtype(TYPES[kind])
        for start, (array, size) in self._memory.items():
            if start <= address < start + size:
                rest = array[address - start :]
                return torch.from_numpy(
                    rest[: rest.nbytes // dtype.itemsize * dtype.itemsize].view(dtype)
                )
        raise AssertionError(f"an argument is {address:#x}, where no memory lives")

    def _within_bounds(self) -> Any:
        from contextlib import contextmanager

        from triton.runtime.interpreter import interpreter_builder as builder

        known = sorted((start, start + size) for start, (_, size) in self._memory.items())
        starts, ends = np.array(known, np.uint64).T

        def check(pointers: Any, mask: Any) -> None:
            width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
            at = np.broadcast_to(pointers.data, mask.data.shape)[mask.data.astype(bool)]
            within = np.searchsorted(starts, at, "right").astype(np.int64) - 1
            outside = (within < 0) | (at + np.uint64(width) > ends[within])
            assert not outside.any(), "a kernel leaves all memory that lives"

        load, store = builder.create_masked_load, builder.create_masked_store

        def checked_load(pointers: Any, mask: Any, *rest: Any) -> Any:
            check(pointers, mask)
            return load(pointers, mask, *rest)

        def checked_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            check(pointers, mask)
            return store(pointers, value, mask, *rest)

        @contextmanager
        def patched() -> Any:
            builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
            try:
                yield
            finally:
                builder.create_masked_load, builder.create_masked_store = load, store

        return patched()


class Recording:
    """Recorded work, as a graph."""

    def __init__(self, device: HostDevice, work: list[Callable[[], None]]) -> None:
        self._device, self._work = device, work

    def replay(self) -> None:
        assert self._device._recording is None
        self._device.enqueue(lambda: self._device.done.update(["replay"]))
        for one in self._work:
            self._device.enqueue(one)

"""What a GPU could make of the loads and stores that the interpreter runs one after another.

A compute-sanitizer for interpreted kernels. Every access must lie in a tensor that is alive. Two
programs may touch an address that one of them writes only if the writer released it, behind a
barrier, with an atomic of acquire-release semantics on which the other then acquired. Within a
program, threads meet only at barriers: what was written must not be read, and what was read must
not be overwritten, before the next one; an access to exactly the same addresses, as in reading and
writing back, is by the same threads.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Addresses = npt.NDArray[np.uint64]
NOT_YET = 0  # the counter of what no atomic has released or acquired


@dataclass(slots=True)
class Access:
    """The addresses that one load or store touches.

    Attributes:
        lanes: as the program lists them.
        at: once each and sorted.
        acquired: address of the counter that its program acquired on before.
        released: address of the counter that its program releases it with.
    """

    lanes: Addresses
    at: Addresses
    is_store: bool
    program: int
    acquired: int
    released: int = NOT_YET


@dataclass(slots=True)
class Launch:
    """One launch as it is interpreted, program after program."""

    starts: Addresses
    ends: Addresses
    program: int = -1
    acquired: int = NOT_YET
    unsettled: list[Access] = field(default_factory=list)  # since the last barrier
    settled: list[Access] = field(default_factory=list)  # of this program, before it
    past: list[Access] = field(default_factory=list)  # of programs that have ended
    wrong: list[str] = field(default_factory=list)

    def begin_program(self) -> None:
        self.past += self.settled + self.unsettled
        self.settled, self.unsettled = [], []
        self.program, self.acquired = self.program + 1, NOT_YET

    def barrier(self) -> None:
        self.settled += self.unsettled
        self.unsettled = []

    def count(self, counter: int, orders: bool) -> None:
        """An atomic; `orders` says whether it acquires and releases for the whole GPU."""
        if orders:
            for access in self.settled:
                if not access.acquired:
                    access.released = counter
            self.acquired = counter
        # Triton hands a scalar atomic's result to all threads through shared memory.
        self.barrier()

    def access(self, pointers: Any, mask: Any, width: int, is_store: bool) -> None:
        lanes = np.where(mask, np.broadcast_to(pointers, mask.shape), np.uint64(0))
        at = np.unique(lanes)
        at = at[at > 0]
        if not at.size:
            return
        what = "store" if is_store else "load"
        within = np.searchsorted(self.starts, at, "right").astype(np.int64) - 1
        outside = (within < 0) | (at + np.uint64(width) > self.ends[within])
        if outside.any():
            self.wrong.append(f"a {what} is outside every tensor")
        one = Access(lanes, at, is_store, self.program, self.acquired)
        for other in self.unsettled:
            if (is_store or other.is_store) and _clash(one, other):
                before = "store" if other.is_store else "load"
                self.wrong.append(f"a {what} follows a {before} without a barrier")
        self.unsettled.append(one)

    def finish(self) -> list[str]:
        """Everything that is wrong with the launch."""
        self.begin_program()
        written = [access.at for access in self.past if access.is_store]
        if written:
            self._compare_programs(np.unique(np.concatenate(written)))
        return self.wrong

    def _compare_programs(self, written: Addresses) -> None:
        columns: list[npt.NDArray[np.int64]] = []
        for access in self.past:
            at = access.at[np.isin(access.at, written, assume_unique=True)]
            values = (access.program, access.acquired, access.released)
            columns.append(np.stack([at.astype(np.int64)] + [np.full(at.size, v) for v in values]))
        at, program, acquired, released = np.concatenate(columns, axis=1)
        early = acquired == NOT_YET
        for side in (early, ~early):
            touched = np.unique(np.stack([at[side], program[side]]), axis=1)
            if (np.diff(touched[0]) == 0).any():
                self.wrong.append("two programs touch what one of them writes")
        # What is left has one program early and one late: the first must release to the second.
        first = np.stack([at[early], program[early], released[early]])
        second = np.stack([at[~early], program[~early], acquired[~early]])
        first = first[:, np.argsort(first[0], kind="stable")]
        second = second[:, np.isin(second[0], first[0])]
        for edge in ("left", "right"):
            found = np.searchsorted(first[0], second[0], edge) - (edge == "right")
            other = first[:, found]
            if ((other[1] != second[1]) & (other[2] != second[2])).any():
                self.wrong.append("a program touches what another wrote and did not release to it")
                break


def _clash(one: Access, other: Access) -> bool:
    """Whether the two share an address and are not lane by lane at the same addresses."""
    if one.at[-1] < other.at[0] or other.at[-1] < one.at[0]:
        return False
    if np.array_equal(one.lanes, other.lanes):
        return False
    return bool(np.isin(one.at, other.at, assume_unique=True).any())


def _memory() -> tuple[Addresses, Addresses]:
    """First and past-the-last addresses of the memory of all living tensors, sorted."""
    import torch

    found = {
        (storage.data_ptr(), storage.data_ptr() + storage.nbytes())
        for tensor in gc.get_objects()
        if type(tensor) is torch.Tensor and tensor.device.type == "cpu"
        for storage in (tensor.untyped_storage(),)
    }
    starts, ends = np.array(sorted(found), dtype=np.uint64).T
    return starts, np.maximum.accumulate(ends)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Watch every launch; the list that it gives is what is wrong, complete at the end."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    names = ("set_grid_dim", "set_grid_idx", "create_masked_load", "create_masked_store",
             "create_atomic_rmw", "create_barrier")  # fmt: skip
    original = {name: getattr(builder, name) for name in names}
    wrong: list[str] = []
    launch: Launch | None = None

    def set_grid_dim(*size: int) -> None:
        nonlocal launch
        wrong.extend(launch.finish() if launch else [])
        launch = Launch(*_memory())
        original["set_grid_dim"](*size)

    def set_grid_idx(*place: int) -> None:
        assert launch
        launch.begin_program()
        original["set_grid_idx"](*place)

    def load(pointers: Any, mask: Any, *rest: Any) -> Any:
        assert launch
        launch.access(pointers.data, mask.data, _width(pointers), is_store=False)
        return original["create_masked_load"](pointers, mask, *rest)

    def store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        assert launch
        launch.access(pointers.data, mask.data, _width(pointers), is_store=True)
        return original["create_masked_store"](pointers, value, mask, *rest)

    def rmw(kind: Any, pointer: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        assert launch
        orders = "ACQUIRE_RELEASE" in str(sem) and "GPU" in str(scope)
        launch.count(int(pointer.data.item()), orders)
        return original["create_atomic_rmw"](kind, pointer, value, mask, sem, scope)

    def barrier() -> None:
        assert launch
        launch.barrier()

    def _width(pointers: Any) -> int:
        return max(1, int(pointers.get_element_ty().primitive_bitwidth) // 8)

    for name, new in zip(
        names, (set_grid_dim, set_grid_idx, load, store, rmw, barrier), strict=True
    ):
        setattr(builder, name, new)
    try:
        yield wrong
    finally:
        for name in names:
            setattr(builder, name, original[name])
        wrong.extend(launch.finish() if launch else [])

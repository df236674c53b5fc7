"""Processes in which Triton's interpreter runs kernels on the CPU.

The interpreter must be chosen before Triton is imported and does not mix with compiling, so work
goes to processes of its own. Two defects of it with bfloat16 are put right there (triton 3.9: `dot`
multiplies the raw bits, and rounding to bfloat16 truncates), and programs of a grid may be run in
any order, as on a GPU.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import numpy as np


@contextmanager
def interpreters(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes interpret kernels; what they run must import Triton only there."""
    with tempfile.TemporaryDirectory() as cache:
        setting = {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
        context = get_context("spawn")
        with ProcessPoolExecutor(workers, context, _prepare, (setting,)) as pool:
            yield pool


def _prepare(setting: dict[str, str]) -> None:
    os.environ.update(setting)
    import torch

    torch.set_num_threads(1)
    correct_bfloat16()
    patch_once_a_launch()
    leave_memory_in_place()


def correct_bfloat16() -> None:
    """Make the interpreter of this process treat bfloat16 as hardware does."""
    import triton.language as tl
    from triton.runtime import interpreter

    dot, convert = interpreter.InterpreterBuilder.create_dot, interpreter._convert_float

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        wide = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(wide, tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    def convert_float(value: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(value, source, target, rounding)
        bits = np.ascontiguousarray(value).view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties to even
        return np.where(np.isnan(value), 0x7FC0, nearest).astype(np.uint16).reshape(value.shape)

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter._convert_float = convert_float


def patch_once_a_launch() -> None:
    """Spare every call of one jitted function from another the 2 ms of patching Triton's language.

    A launch patches what kernels see; what Triton's own jitted functions see stays patched anyway.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang(tl.zeros.fn)
    interpreter.InterpretedFunction.__call__ = call


def leave_memory_in_place() -> None:
    """Spare tensors, which are on the CPU already, the copy onto themselves after each launch.

    A copy would also touch every page of a large array of which a kernel touches few.
    """
    from triton.runtime import interpreter

    interpreter.GridExecutor._restore_args_dev = lambda *_: None


@contextmanager
def shuffled_programs(seed: int | None) -> Iterator[None]:
    """Run the programs of every launch in an order of `seed`'s; None leaves it as it is."""
    if seed is None:
        yield
        return
    from triton.runtime.interpreter import interpreter_builder

    place: Callable[[int, int, int], None] = interpreter_builder.set_grid_idx
    begin: Callable[[int, int, int], None] = interpreter_builder.set_grid_dim
    order: Iterator[tuple[int, int, int]] = iter(())

    def set_grid_dim(x: int, y: int, z: int) -> None:
        nonlocal order
        programs = [(i, j, k) for i in range(x) for j in range(y) for k in range(z)]
        random.Random(seed).shuffle(programs)
        order = iter(programs)
        begin(x, y, z)

    def set_grid_idx(*_: int) -> None:
        place(*next(order))

    interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx = set_grid_dim, set_grid_idx
    try:
        yield
    finally:
        interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx = begin, place

"""CPU kernels of our own, compiled when avl is installed where there is a C compiler.

`SplitCacheStep` is a custom op of ONNX Runtime's CPU provider, in place of its function body;
rows that change places are swapped in one pass. Both are optional: without the library the same is
computed by ONNX Runtime's standard ops and NumPy.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cpu.build import LIBRARY

SWITCH = "AVL_CPU_KERNELS"  # environment variable; "off" leaves the library alone

Rows = NDArray[Any]
SwapRows = Callable[[Rows, Rows, NDArray[np.int64], NDArray[np.int64]], None]


def library() -> Path | None:
    """The compiled library; None where there is none or it is switched off."""
    return LIBRARY if os.environ.get(SWITCH) != "off" and LIBRARY.is_file() else None


def swap_rows() -> SwapRows | None:
    """A function that swaps rows of one sequence in place, or None without the library.

    It takes `active` [Hkv, A, D] and `parked` [Hkv, P, D], contiguous and of one dtype, and the
    rows `out` of one and `into` of the other, as many, each named once. Other Python threads run
    meanwhile.
    """
    path = library()
    return None if path is None else _swap_rows(path)


@functools.cache
def _swap_rows(path: Path) -> SwapRows:
    function = ctypes.CDLL(str(path)).avl_swap_rows
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.restype = ctypes.c_int
    function.argtypes = [*[pointer] * 2, *[number] * 4, *[pointer] * 2, number]

    def swap(active: Rows, parked: Rows, out: NDArray[np.int64], into: NDArray[np.int64]) -> None:
        heads, active_rows, width = active.shape
        out, into = np.ascontiguousarray(out), np.ascontiguousarray(into)
        fits = (
            active.flags.c_contiguous
            and parked.flags.c_contiguous
            and active.dtype == parked.dtype
            and (heads, width) == (parked.shape[0], parked.shape[2])
            and len(out) == len(into)
        )
        if not fits:
            raise ValueError(
                f"expected contiguous rows that fit, found {active.dtype} {active.shape}, "
                f"{parked.dtype} {parked.shape}, {len(out)} and {len(into)} rows"
            )
        failed = function(
            active.ctypes.data,
            parked.ctypes.data,
            heads,
            active_rows,
            parked.shape[1],
            width * active.itemsize,
            out.ctypes.data,
            into.ctypes.data,
            len(out),
        )
        if failed:
            raise ValueError(
                f"expected rows below {active_rows} and {parked.shape[1]}, "
                f"found {out.tolist()} and {into.tolist()}"
            )

    return swap

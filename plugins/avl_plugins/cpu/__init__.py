"""CPU kernels of our own, compiled when avl is installed where there is a C compiler.

`SplitCacheStep` and `SplitCachePrompt` are custom ops of ONNX Runtime's CPU provider, in place of
their function bodies; the step also does a refresh (`avl_plugins.cpu.refresh`). So are `Linear`,
`LogitsLinear` and the like where the processor has AVX2 and F16C, or is Arm's, and
`QuantizedLinear`, which takes AMX for many rows where the processor has that and AVX-512 VNNI.
The library is optional: without it the same is computed by ONNX Runtime's standard ops and NumPy.
The host also asks it to copy a step's new rows into a cache (append.h).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from avl_plugins.cpu.build import LIBRARY, X86
from avl_plugins.errors import AvlError, quoted

SWITCH = "AVL_CPU_KERNELS"  # environment variable; "off" leaves the library alone
AMX_SWITCH = "AVL_AMX"  # the same; "off" leaves AMX to others in sessions opened from then on
LEVEL_SWITCH = "AVL_CPU_LEVEL"  # the same; no instructions that come after the named one's
LEVELS = {
    "x86_64": ("base", "avx2", "avx-vnni", "avx512", "vnni", "amx"),
    "aarch64": ("base", "dotprod", "i8mm"),
}


Functions = TypeVar("Functions")


class SwitchError(AvlError):
    """An environment variable that switches kernels has no value of its own."""


def library() -> Path | None:
    """The compiled library; None where there is none or it is switched off.

    Raises:
        SwitchError: a switch has a value that means nothing.
    """
    is_off = _is_off(SWITCH)
    _is_off(AMX_SWITCH)  # which the library reads by itself,
    _check_level()  # as it does this
    return LIBRARY if not is_off and LIBRARY.is_file() else None


def loaded(functions: Callable[[Path], Functions]) -> Functions | None:
    """What `functions` finds in the library in use; None where there is none.

    Raises:
        OSError: the library is damaged, for another machine, or of another version of avl.
    """
    path = library()
    try:
        return None if path is None else functions(path)
    except AttributeError as missing:
        raise OSError(
            f"{path}: expected this version's CPU kernels, found others ({missing}); compile "
            "them with python -m avl_plugins.cpu.build"
        ) from missing


def _is_off(switch: str) -> bool:
    value = os.environ.get(switch, "")
    if value not in ("", "on", "off"):
        raise SwitchError(
            f"{switch}: expected on or off, found {quoted(value)}; write {switch}=off"
        )
    return value == "off"


def _check_level() -> None:
    machine = platform.machine()
    levels = LEVELS["x86_64" if machine in X86 else "aarch64"]
    value = os.environ.get(LEVEL_SWITCH, "")
    if value not in ("", *levels):
        raise SwitchError(
            f"{LEVEL_SWITCH}: expected one of {', '.join(levels)}, found {quoted(value)}; unset it "
            "to use all that the processor has"
        )

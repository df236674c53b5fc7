"""C of the CPU kernels compiled by itself, and what it needs of the processor."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from avl_plugins import cpu
from avl_plugins.cpu import build


def require(options: Iterable[str]) -> None:
    """Skip the test where the processor lacks what these options of a compiler ask for."""
    needs = {option.removeprefix("-m").replace("-", "") for option in options}
    info = Path("/proc/cpuinfo")
    has = set(info.read_text().replace("_", "").split()) if info.is_file() else set()
    if not has.issuperset(needs):
        pytest.skip(f"this processor lacks {', '.join(sorted(needs - has))}")


def library_for(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    levels: Mapping[str, Iterable[str]],
) -> Path | None:
    """The library, kept to a level of instructions; None: an op's body is asked for.

    Args:
        request: of a fixture with the parameter "body", or the name of one of `levels`.
        levels: what each needs, as options of a compiler.
    """
    if request.param == "body":
        return None
    library: Path = request.getfixturevalue("kernels")
    require(levels[request.param])
    monkeypatch.setenv(cpu.LEVEL_SWITCH, request.param)
    return library


def compiled(source: str, folder: Path, *options: str) -> ctypes.CDLL:
    """A library of one source, all of whose functions can be called."""
    target = folder / f"{Path(source).stem}.so"
    flags = [flag for flag in build.FLAGS if not flag.startswith("-fvisibility")]
    command = [build.compiler(), *flags, *options, "-shared", build.FOLDER / source, "-o", target]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))

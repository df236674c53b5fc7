"""Compile the CPU kernels: `python -m avl_plugins.cpu.build`, and what an installation runs.

Only the standard library, as it runs before anything is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = ("attention.c", "rows.c", "ort_ops.c")
LIBRARY = FOLDER / ("avl_cpu.dylib" if sys.platform == "darwin" else "avl_cpu.so")
COMPILERS = ("cc", "gcc", "clang")
# Sums may be taken in any order, as vectors need; not -ffast-math, which has a library change how
# the whole process treats small numbers when it is loaded.
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fno-math-errno",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
)


class CompileError(Exception):
    """There is no C compiler, or it refused the sources."""


def compiler() -> str:
    """The C compiler: $CC, or the first of COMPILERS that is there.

    Raises:
        CompileError: none is there.
    """
    for name in filter(None, (os.environ.get("CC"), *COMPILERS)):
        found = shutil.which(name)
        if found:
            return found
    raise CompileError(
        f"expected a C compiler ({', '.join(COMPILERS)} or $CC), found none; install one "
        "(Debian: gcc)"
    )


def build() -> Path:
    """Compile the sources beside this file into LIBRARY, which is replaced as a whole.

    Raises:
        CompileError: it cannot be done here.
    """
    if sys.platform == "win32":
        raise CompileError("expected Linux or macOS, found Windows; nothing to do")
    staged = LIBRARY.with_name(f"{LIBRARY.name}.{os.getpid()}")
    command = [compiler(), *FLAGS, *(str(FOLDER / name) for name in SOURCES), "-o", str(staged)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise CompileError(
                f"expected {command[0]} to compile {FOLDER}, found: {done.stderr[:2000]}"
            )
        staged.replace(LIBRARY)
    finally:
        staged.unlink(missing_ok=True)
    return LIBRARY


if __name__ == "__main__":
    try:
        print(build())
    except CompileError as problem:
        sys.exit(f"error: {problem}")

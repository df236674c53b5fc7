#!/usr/bin/env python
"""Compiles the CPU kernels for Arm and runs each beside float64 in an emulator.

    .venv/bin/python scripts/arm.py

needs a cross compiler and qemu's user emulation (Debian: gcc-aarch64-linux-gnu, qemu-user). A
program of the kernels and the checks in `scripts/arm/` runs on processors with different
instructions. An emulator says what is right, and nothing of speed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from avl_plugins.cpu import build

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
CHECKS = Path(__file__).with_suffix("")
# With i8mm and dotprod, with dotprod alone, with neither.
PROCESSORS = ("max", "neoverse-n1", "cortex-a72")


def missing(*programs: str) -> str | None:
    """What this machine lacks of programs; None where it lacks nothing."""
    lacks = [name for name in programs if shutil.which(name) is None]
    return f"expected {' and '.join(lacks)}, found none" if lacks else None


def program(folder: Path, compiler: str = COMPILER) -> Path:
    """The checks and all kernels, in `folder`.

    Raises:
        build.CompileError: the compiler refused a kernel.
        subprocess.CalledProcessError: it refused a check.
    """
    units = build.units(compiler, "aarch64")
    objects = [build.compiled(compiler, unit, folder) for unit in units]
    made = folder / "check"
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]
    sources = sorted(CHECKS.glob("*.c"))
    subprocess.run(
        [*command, f"-I{build.FOLDER}", *sources, *objects, "-lm", "-o", made], check=True
    )
    return made


def run(made: Path, processor: str) -> subprocess.CompletedProcess[str]:
    """The checks on an emulated processor."""
    command = [EMULATOR, "-cpu", processor, str(made)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--compiler", default=COMPILER, help=f"default: {COMPILER}")
    compiler = parser.parse_args().compiler
    if problem := missing(compiler, EMULATOR):
        parser.error(f"{problem}; install gcc-aarch64-linux-gnu and qemu-user")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        made = program(Path(folder), compiler)
        for processor in PROCESSORS:
            done = run(made, processor)
            failed += done.returncode != 0
            print(f"{processor}: {done.stdout}{done.stderr}", end="")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

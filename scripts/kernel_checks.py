#!/usr/bin/env python
"""Compiles the CPU kernels with a program that runs each beside float64, for Arm or for here.

    .venv/bin/python scripts/kernel_checks.py
    .venv/bin/python scripts/kernel_checks.py --here [--compiler clang]

The first needs a cross compiler and qemu's user emulation (Debian: gcc-aarch64-linux-gnu,
qemu-user), and runs the program on emulated processors with different instructions. An emulator
says what is right, and nothing of speed. The second runs it here, for every level of instructions
in turn that this processor has (AVL_CPU_LEVEL), with any compiler.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from avl_plugins import cpu
from avl_plugins.cpu import build

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
CHECKS = Path(__file__).with_suffix("")
STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{build.FOLDER}")
# With i8mm and dotprod, with dotprod alone, with neither.
PROCESSORS = ("max", "neoverse-n1", "cortex-a72")


def missing(*programs: str) -> str | None:
    """What this machine lacks of programs; None where it lacks nothing."""
    lacks = [name for name in programs if shutil.which(name) is None]
    return f"expected {' and '.join(lacks)}, found none" if lacks else None


def program(folder: Path, compiler: str, machine: str, *options: str) -> Path:
    """The checks and all kernels, in `folder`; `options` are the compiler's, beside the library's.

    Raises:
        build.CompileError: the compiler refused a kernel.
        subprocess.CalledProcessError: it refused a check.
    """
    units = [
        unit._replace(options=(*unit.options, *options)) for unit in build.units(compiler, machine)
    ]
    objects = [build.compiled(compiler, unit, folder) for unit in units]
    made = folder / "check"
    sources = map(str, sorted(CHECKS.glob("*.c")))
    command = [compiler, *STRICT, "-O2", "-static", *sources, *objects, "-lm", "-o", str(made)]
    subprocess.run(command, check=True)
    return made


def emulated(made: Path, processor: str) -> subprocess.CompletedProcess[str]:
    """The checks on an emulated processor."""
    return _run([EMULATOR, "-cpu", processor, str(made)])


def run_here(made: Path, level: str) -> subprocess.CompletedProcess[str]:
    """The checks on this processor, up to a level of its instructions."""
    return _run([str(made)], {cpu.LEVEL_SWITCH: level})


def _run(
    command: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | (environment or {}),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--here", action="store_true", help="for this machine, without an emulator")
    parser.add_argument("--compiler", help=f"default: {COMPILER}, and with --here that of avl")
    parsed = parser.parse_args()
    machine = platform.machine() if parsed.here else "aarch64"
    compiler = parsed.compiler or (build.compiler() if parsed.here else COMPILER)
    if problem := missing(compiler, *(() if parsed.here else (EMULATOR,))):
        parser.error(f"{problem}; install it (Debian: gcc-aarch64-linux-gnu and qemu-user for Arm)")
    levels = cpu.LEVELS["x86_64" if machine in build.X86 else "aarch64"]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        made = program(Path(folder), compiler, machine)
        for name in levels if parsed.here else PROCESSORS:
            done = run_here(made, name) if parsed.here else emulated(made, name)
            failed += done.returncode != 0
            print(f"{name}: {done.stdout}{done.stderr}", end="")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

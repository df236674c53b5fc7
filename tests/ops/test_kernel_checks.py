"""CPU kernels beside float64 without ONNX Runtime: for Arm in an emulator, and by clang."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import kernel_checks
from avl_plugins.cpu import build
from avl_plugins.cpu.host import host


def test_the_checks_fit_the_kernels(kernels: Path) -> None:
    """They stand outside the library: where nothing else compiles them, no one would see it."""
    compiler = build.compiler()
    for source in sorted(kernel_checks.CHECKS.glob("*.c")):
        command = [compiler, *kernel_checks.STRICT, "-fsyntax-only", source]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def program_for_arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of the library, with nothing missing, and its checks."""
    if problem := kernel_checks.missing(kernel_checks.COMPILER):
        pytest.skip(problem)
    folder = tmp_path_factory.mktemp("arm")
    return kernel_checks.program(folder, kernel_checks.COMPILER, "aarch64")


@pytest.mark.parametrize("processor", kernel_checks.PROCESSORS)
def test_kernels_for_arm_agree_with_float64(program_for_arm: Path, processor: str) -> None:
    if problem := kernel_checks.missing(kernel_checks.EMULATOR):
        pytest.skip(problem)
    done = kernel_checks.emulated(program_for_arm, processor)
    assert done.returncode == 0, done.stdout + done.stderr
    told = {"max": "NEON, dotprod, i8mm: ", "neoverse-n1": "NEON, dotprod: "}
    assert done.stdout.startswith(told.get(processor, "NEON: "))
    assert done.stdout.endswith(", 0 differ\n")


def test_kernels_by_clang_agree_with_float64(tmp_path: Path, kernels: Path) -> None:
    """Beside gcc, which compiles the library where it is there; -O1 takes half of -O3's time."""
    names = ("clang", *(f"clang-{version}" for version in range(30, 10, -1)))
    clang = next(filter(None, map(shutil.which, names)), None)
    if clang is None:
        pytest.skip("expected clang, found none")
    made = kernel_checks.program(tmp_path, clang, platform.machine(), "-O1")
    done = kernel_checks.run_here(made, "")
    assert done.returncode == 0, done.stdout + done.stderr
    functions = host()
    assert functions is not None
    assert done.stdout.startswith(f"{functions.instructions()}: ")
    assert done.stdout.endswith(", 0 differ\n")

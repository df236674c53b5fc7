"""CPU kernels for Arm, compiled here and run beside float64 in an emulator."""

from __future__ import annotations

from pathlib import Path

import pytest

import arm


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of the library, with nothing missing, and its checks."""
    if problem := arm.missing(arm.COMPILER):
        pytest.skip(problem)
    return arm.program(tmp_path_factory.mktemp("arm"))


@pytest.mark.parametrize("processor", arm.PROCESSORS)
def test_kernels_agree_with_float64(program: Path, processor: str) -> None:
    if problem := arm.missing(arm.EMULATOR):
        pytest.skip(problem)
    done = arm.run(program, processor)
    assert done.returncode == 0, done.stdout + done.stderr
    told = {"max": "dotprod 1, i8mm 1", "neoverse-n1": "dotprod 1, i8mm 0"}
    assert done.stdout.startswith(told.get(processor, "dotprod 0, i8mm 0"))
    assert done.stdout.endswith(", 0 differ\n")

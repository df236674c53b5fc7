"""avl-doctor names what is missing, and how to get it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from avl_plugins import cpu
from avl_runtime.cli.doctor import main
from avl_runtime.diagnosis import Finding, diagnose
from avl_runtime.libraries import Library
from avl_runtime.machine import Gpu, Machine

ADA = Gpu("NVIDIA GeForce RTX 4090", 89, 24 << 30)
FULL = Machine("linux-x86_64", (ADA,), "580.65.06", (13, 0), None)
BARE = Machine("linux-x86_64", (), None, None, "no NVIDIA driver: libcuda.so.1 is missing")
NAMES = {
    "python",
    "avl",
    "GPU",
    "driver",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
    "polygraphy",
    "onnx",
    "cuda-python",
    "kernels",
    "CPU kernels",
}


def have(**versions: str) -> Callable[[str], Library | None]:
    found = {name.replace("_", "-"): Library(text, None) for name, text in versions.items()}
    return found.get


EVERYTHING = have(
    avl="0.1.0",
    onnxruntime="1.31.1",
    tensorrt="11.4.0",
    tensorrt_rtx="1.7.1.116",
    polygraphy="0.53.6",
    onnx="1.23.2",
    cuda_python="13.4.4",
)


def by_name(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    return {one.name: one for one in findings}


def test_a_machine_with_everything() -> None:
    found = by_name(diagnose(FULL, EVERYTHING))
    assert set(found) == {*NAMES, "plugins"}
    missing = {name for name, one in found.items() if one.fix is not None}
    # Where these tests run onnxruntime is the CPU build, and there may be no C compiler.
    assert missing <= {"onnxruntime", "CPU kernels"}
    assert found["GPU"].found == "NVIDIA GeForce RTX 4090, compute capability 8.9, 24.0 GiB"
    assert found["driver"].found == "580.65.06, CUDA 13.0"
    assert "PTX for sm_" in found["kernels"].found


def test_a_machine_with_nothing() -> None:
    found = by_name(diagnose(BARE, have(onnxruntime="1.31.1")))
    assert set(found) == NAMES
    for name in ("tensorrt", "tensorrt-rtx", "polygraphy", "onnx", "cuda-python"):
        assert found[name].found == "none"
        assert str(found[name].fix).startswith("pip install 'avl[")
    assert "libcuda.so.1 is missing" in found["GPU"].found
    for name in ("GPU", "driver"):
        assert "https://www.nvidia.com/drivers" in str(found[name].fix)
    assert found["onnxruntime"].fix is None  # without a GPU the CPU's is all there is


def test_an_old_driver_and_a_cpu_only_onnxruntime() -> None:
    old = Machine("linux-x86_64", (ADA,), "550.54.14", (12, 4), None)
    found = by_name(diagnose(old, EVERYTHING))
    assert "580 or newer" in str(found["driver"].fix)
    if "CUDAExecutionProvider" not in found["onnxruntime"].found:
        assert "onnxruntime-gpu" in str(found["onnxruntime"].fix)


def test_jetpack_6() -> None:
    found = by_name(diagnose(FULL, have(onnxruntime="1.31.1", tensorrt="10.3.0")))
    assert "10.3.0 takes none" in found["plugins"].found
    assert "tensorrt>=10.9" in str(found["plugins"].fix)


def test_a_gpu_older_than_all_kernels() -> None:
    turing = Machine("linux-x86_64", (Gpu("T4", 75, 16 << 30),), "580.65.06", (13, 0), None)
    assert "8.0 or later" in str(by_name(diagnose(turing, EVERYTHING))["kernels"].fix)


def test_cpu_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "kernels.so")
    missing = by_name(diagnose(BARE, EVERYTHING))["CPU kernels"]
    assert missing.found == "not compiled"
    assert "python -m avl_plugins.cpu.build" in str(missing.fix)
    cpu.LIBRARY.touch()
    assert by_name(diagnose(BARE, EVERYTHING))["CPU kernels"].fix is None
    monkeypatch.setenv(cpu.SWITCH, "off")
    assert by_name(diagnose(BARE, EVERYTHING))["CPU kernels"].found == "switched off"


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in NAMES)
    assert main(["--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {one["name"] for one in findings} >= NAMES
    for one in findings:
        assert one["fix"] is None or f"-> {one['fix']}" in text

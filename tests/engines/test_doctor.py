"""avl-doctor names what is missing, and how to get it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from avl_plugins import cpu
from avl_runtime.cli import doctor
from avl_runtime.cli.diagnosis import Finding, diagnose
from avl_runtime.cli.doctor import main
from avl_runtime.machine.installation import install_extra
from avl_runtime.machine.libraries import Library
from avl_runtime.machine.probe import Gpu, Machine

ADA = Gpu("NVIDIA GeForce RTX 4090", 89, 24 << 30)
FULL = Machine("linux-x86_64", (ADA,), "580.65.06", (13, 0), None)
BARE = Machine("linux-x86_64", (), None, None, "no NVIDIA driver: libcuda.so.1 is missing")
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
EXTRAS = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
# Every package that a user's extra installs.
OPTIONAL = {
    re.split(r"[^\w.-]", text)[0] for name in EXTRAS if name != "dev" for text in EXTRAS[name]
}
NAMES = OPTIONAL | {
    "python",
    "avl",
    "GPU",
    "driver",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
    "kernels",
    "CPU kernels",
}


def have(**versions: str) -> Callable[[str], Library | None]:
    found = {name.replace("_", "-"): Library(text, None) for name, text in versions.items()}
    return found.get


EVERYTHING = have(
    **dict.fromkeys(OPTIONAL - {"tensorrt", "tensorrt-rtx", "torch"}, "99.0"),
    avl="0.1.0",
    onnxruntime="1.31.1",
    tensorrt="11.4.0",
    tensorrt_rtx="1.7.1.116",
    torch="2.13.0+cpu",
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
    assert len(OPTIONAL) >= 13
    for name in OPTIONAL:
        assert found[name].found == "none"
    for extra, texts in EXTRAS.items():
        assert extra == "dev" or any(
            str(found[re.split(r"[^\w.-]", text)[0]].fix).startswith(install_extra(extra))
            for text in texts
        )
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


def test_a_package_older_than_avl_takes() -> None:
    versions = {"transformers": "4.57.1", "torch": "2.8.0+cpu", "pillow": "1.0"}
    found = by_name(diagnose(BARE, have(onnxruntime="1.31.1", **versions)))
    assert found["transformers"].found.startswith("4.57.1, older than 5")
    assert found["torch"].found.startswith("2.8.0+cpu, older than 2.")
    assert found["transformers"].fix == found["torch"].fix == install_extra("export")


def test_a_gpu_older_than_all_kernels() -> None:
    turing = Machine("linux-x86_64", (Gpu("T4", 75, 16 << 30),), "580.65.06", (13, 0), None)
    assert "8.0 or later" in str(by_name(diagnose(turing, EVERYTHING))["kernels"].fix)


def test_cpu_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "kernels.so")
    missing = by_name(diagnose(BARE, EVERYTHING))["CPU kernels"]
    assert missing.found == "not compiled"
    assert "python -m avl_plugins.cpu.build" in str(missing.fix)
    cpu.LIBRARY.touch()
    damaged = by_name(diagnose(BARE, EVERYTHING))["CPU kernels"]
    assert damaged.found.startswith("damaged")
    assert "python -m avl_plugins.cpu.build" in str(damaged.fix)
    monkeypatch.setenv(cpu.SWITCH, "off")
    assert by_name(diagnose(BARE, EVERYTHING))["CPU kernels"].found == "switched off"


def test_cpu_kernels_that_run_here(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu.AMX_SWITCH, "off")
    here = by_name(diagnose(BARE, EVERYTHING))["CPU kernels"]
    assert here.fix is None
    assert here.found.startswith("compiled; here ")
    assert "AMX" not in here.found


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in NAMES)
    assert main(["--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {one["name"] for one in findings} >= NAMES
    for one in findings:
        assert one["fix"] is None or f"-> {one['fix']}" in text


def test_neighbours_with_the_same_command_say_it_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda machine: diagnose(BARE, have(avl="0.1.0")))
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    command = f"-> {install_extra('export')}"
    (place,) = (number for number, line in enumerate(lines) if command in line)
    assert [line.split()[1] for line in lines[place - 6 : place]] == [
        re.split(r"[^\w.-]", text)[0] for text in EXTRAS["export"]
    ]

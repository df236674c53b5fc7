"""What prompts are computed in: `compute` and `--compute`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avl_plugins import cpu
from avl_plugins.schema import FP16, INT8
from avl_runtime import LVLM
from avl_runtime.cli.run import main as avl_run
from avl_runtime.execute import load_backend
from avl_runtime.execute.host.compute import ATTENTION, LINEARS, VNNI, compute_entries, told
from avl_runtime.execute.protocol import BackendError
from avl_runtime.package.manifest import Manifest
from avl_runtime.package.package import load_package
from avl_runtime.package.quantization import Quantization

FP32 = {ATTENTION: "fp32", LINEARS: "fp32"}


def manifest_of(package: Path, parts: tuple[str, ...] = ()) -> Manifest:
    """A package's manifest, as if so many parts were quantized."""
    manifest = load_package(package).manifest
    quantization = Quantization("rtn", 4, 64, parts, False, None) if parts else None
    return dataclasses.replace(manifest, quantization=quantization)


def test_what_is_multiplied_in_bf16(tiny_package: Path, amx_kernel: Path) -> None:
    plain, decoder, tower = (
        manifest_of(tiny_package, parts) for parts in ((), ("decoder",), ("vision",))
    )
    assert compute_entries("auto", plain) == FP32
    assert compute_entries("auto", tower) == FP32
    assert compute_entries("auto", decoder) == {ATTENTION: "bf16", LINEARS: "fp32"}
    assert compute_entries("auto", tower, "vision") == {ATTENTION: "bf16", LINEARS: "fp32"}
    assert compute_entries("auto", decoder, "vision") == FP32
    for manifest in (plain, decoder, tower):
        assert compute_entries("fp32", manifest) == FP32
        assert compute_entries("bf16", manifest) == {ATTENTION: "bf16", LINEARS: "bf16"}


def test_prompts_in_bf16(tiny_package: Path, amx_kernel: Path) -> None:
    picture = Image.effect_mandelbrot((96, 96), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    found = {}
    for compute in ("auto", "fp32", "bf16"):
        with LVLM.load(tiny_package, "ort-cpu", compute=compute) as model:
            result = model.generate("What?", [picture], max_new_tokens=1, return_logits=True)
        assert result.logits is not None
        assert result.stats.kernels is not None
        rounded = [f"{part}: attention and linears in bf16" for part in ("prompts", "pictures")]
        assert result.stats.kernels.split("; ")[1:] == (rounded if compute == "bf16" else [])
        found[compute] = result.logits
    np.testing.assert_array_equal(found["auto"], found["fp32"])
    error = np.linalg.norm(found["bf16"] - found["fp32"]) / np.linalg.norm(found["fp32"])
    assert 0 < error < 0.02


def test_whole_numbers_are_told(
    tiny_package: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cpu.AMX_SWITCH, "off")
    manifest = manifest_of(tiny_package)
    wide, narrow = (
        dataclasses.replace(manifest, dims=dataclasses.replace(manifest.dims, head_dim=size))
        for size in (64, 24)
    )
    plain = told(FP32, FP32, INT8, wide)
    assert plain is not None
    more = "; prompts: attention in whole numbers" if plain == VNNI else ""
    assert told(FP32 | {ATTENTION: "bf16"}, FP32, INT8, wide) == plain + more
    biased = dataclasses.replace(wide, restores=True)
    restored = more and f"{more}; prompts with positions=restore: attention in fp32"
    assert told(FP32 | {ATTENTION: "bf16"}, FP32, INT8, biased) == plain + restored
    assert told(FP32 | {ATTENTION: "bf16"}, FP32, INT8, narrow) == plain
    pictures = more.replace("prompts", "pictures")
    assert told(FP32, FP32 | {ATTENTION: "bf16"}, INT8, narrow) == plain + pictures
    assert told(FP32 | {ATTENTION: "bf16"}, FP32, FP16, wide) == plain


def test_bf16_without_amx_is_refused(
    tiny_package: Path,
    kernels: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(cpu.AMX_SWITCH, "off")
    with pytest.raises(BackendError, match="--compute bf16: expected a processor with AMX"):
        LVLM.load(tiny_package, "ort-cpu", compute="bf16")
    with LVLM.load(tiny_package, "ort-cpu", compute="fp32") as model:
        kernels_told = model.loaded.executor.kernels
        assert kernels_told is not None and "AMX" not in kernels_told
    assert avl_run([str(tiny_package), "What?", "--compute", "bf16"]) == 1
    assert "expected a processor with AMX" in capsys.readouterr().err
    monkeypatch.setenv(cpu.SWITCH, "off")
    with pytest.raises(BackendError, match="found no compiled kernels"):
        compute_entries("bf16", manifest_of(tiny_package))


def test_bf16_of_a_package_in_fp16_is_refused(tiny_package: Path) -> None:
    manifest = dataclasses.replace(manifest_of(tiny_package), dtype="fp16")
    assert compute_entries("auto", manifest) == {}
    with pytest.raises(BackendError, match="expected a package that computes in fp32, found fp16"):
        compute_entries("bf16", manifest)


def test_what_is_none_of_them_is_refused(tiny_package: Path) -> None:
    with pytest.raises(BackendError, match="compute to be auto, fp32 or bf16, found 'fp8'"):
        LVLM.load(tiny_package, "ort-cpu", compute="fp8")
    with pytest.raises(BackendError, match="--compute fp32: expected ort-cpu, found tensorrt"):
        load_backend("tensorrt", load_package(tiny_package), 1, compute="fp32")


def test_it_is_for_a_cpu(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = load_backend("auto", load_package(tiny_package), 1, compute="fp32")
    assert backend.name == "ort-cpu"
    assert capsys.readouterr().err == "avl: backend ort-cpu, which --compute is for\n"

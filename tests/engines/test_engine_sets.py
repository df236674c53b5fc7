"""Engines are loaded only where they run, and only the very files that were built."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from avl_runtime.execute.device import trusted as engines
from avl_runtime.execute.protocol import BackendError
from avl_runtime.machine.libraries import Library
from avl_runtime.machine.probe import Gpu, Machine
from avl_runtime.package.engine_sets import EngineFile, EngineSet, Limits
from avl_runtime.package.package import Package, load_package

ADA = Gpu("NVIDIA GeForce RTX 4090", 89, 24 << 30)
HOPPER = Gpu("NVIDIA H200", 90, 141 << 30)
TURING = Gpu("NVIDIA GeForce RTX 2080", 75, 8 << 30)
VERSION = "1.7.1.116"
HERE = Machine("linux-x86_64", (ADA,), "580.65.06", (13, 0), None)
SET = EngineSet(
    backend="tensorrt-rtx",
    version=VERSION,
    targets=(89, 120),
    cuda=13,
    platform="linux-x86_64",
    plugins=False,
    row_block=8,
    limits=Limits(8, 1024, 4096, 1),
    files=(),
)

MISFITS: dict[str, tuple[Machine, str | None, str | None]] = {
    "fits": (HERE, VERSION, None),
    "other GPU": (
        replace(HERE, gpus=(HOPPER,)),
        VERSION,
        "NVIDIA H200 of compute capability 9.0",
    ),
    "first GPU counts": (
        replace(HERE, gpus=(TURING, ADA)),
        VERSION,
        "NVIDIA GeForce RTX 2080 of compute capability 7.5",
    ),
    "no GPU": (
        replace(HERE, gpus=(), trouble="the driver finds no GPU"),
        VERSION,
        "no NVIDIA GPU (the driver finds no GPU)",
    ),
    "old driver": (
        replace(HERE, driver="550.54.14", cuda=(12, 4)),
        VERSION,
        "driver 550.54.14 for CUDA 12.4",
    ),
    "newer driver": (replace(HERE, driver="600.1", cuda=(14, 1)), VERSION, None),
    "driver of a Jetson": (replace(HERE, driver=None), VERSION, None),
    "older library": (HERE, "1.6.1.120", "tensorrt-rtx 1.6.1.120"),
    "no library": (HERE, None, "no tensorrt-rtx"),
    "other system": (replace(HERE, platform="linux-aarch64"), VERSION, "linux-aarch64"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfit(case: str) -> None:
    machine, installed, wanted = MISFITS[case]
    assert SET.misfit(machine, installed) == wanted


@pytest.mark.parametrize(("capability", "runs"), [(75, False), (80, True), (90, True), (121, True)])
def test_a_set_without_targets_is_for_ampere_and_newer(capability: int, runs: bool) -> None:
    assert replace(SET, targets=()).runs_on(capability) == runs


def test_what_a_set_wants() -> None:
    assert SET.wants() == (
        "tensorrt-rtx 1.7.1.116 on linux-x86_64, a GPU of compute capability 8.9 or 12.0, a "
        "driver for CUDA 13 (580 or newer)"
    )
    anywhere = replace(SET, targets=(), cuda=None)
    assert anywhere.wants().endswith("a GPU of compute capability 8.0 or newer")
    assert SET.folder == "engines/tensorrt-rtx-1.7.1.116-sm89-sm120"
    assert anywhere.folder == "engines/tensorrt-rtx-1.7.1.116-sm80+"


@pytest.fixture
def package(fp16: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """avl-tiny with made-up engines for 8.9 and 12.0."""
    monkeypatch.setattr(engines, "installed", lambda _: Library(VERSION, 13))
    found = load_package(fp16)
    (fp16 / SET.folder).mkdir(parents=True)
    files = []
    for graph in found.manifest.graphs:
        data = f"engine of {graph}".encode()
        path = f"{SET.folder}/{Path(graph).stem}.engine"
        (fp16 / path).write_bytes(data)
        files.append(EngineFile(graph, path, len(data), hashlib.sha256(data).hexdigest()))
    return with_sets(found, replace(SET, files=tuple(files)))


def with_sets(package: Package, *sets: EngineSet) -> Package:
    """Through the file, as a user would have it."""
    manifest = replace(package.manifest, engines=sets)
    (package.folder / "avl.json").write_text(manifest.to_json())
    return load_package(package.folder)


def refusal(package: Package, machine: Machine = HERE) -> str:
    with pytest.raises(BackendError) as error:
        engines.find_engines(package, "tensorrt-rtx", machine)
    return str(error.value)


def test_engines_that_fit_are_found(package: Package) -> None:
    found = engines.find_engines(package, "tensorrt-rtx", HERE)
    assert found.made.limits.cache_rows == 4096
    assert found.paths["decoder.1.onnx"].read_bytes() == b"engine of decoder.1.onnx"
    assert list(found.paths) == list(package.manifest.graphs)


def test_the_set_for_fewest_gpus_is_taken(package: Package) -> None:
    (built,) = package.manifest.engines
    sets = [replace(built, targets=targets) for targets in ((), (89, 120), (89,), (75,))]
    found = engines.find_engines(with_sets(package, *sets), "tensorrt-rtx", HERE)
    assert found.made.targets == (89,)
    found = engines.find_engines(with_sets(package, sets[0], sets[3]), "tensorrt-rtx", HERE)
    assert found.made.targets == ()


def test_none_fits(package: Package) -> None:
    text = refusal(package, replace(HERE, gpus=(HOPPER,)))
    assert "8.9 or 12.0, a driver for CUDA 13 (580 or newer), found NVIDIA H200" in text
    assert "9.0 with avl-build --backend tensorrt-rtx" in text
    assert "use --backend ort-cpu" in refusal(package, replace(HERE, gpus=()))


def test_none_built(package: Package) -> None:
    text = refusal(with_sets(package))
    assert "expected engines for tensorrt-rtx, found none" in text
    assert f"avl-build {package.folder} --backend tensorrt-rtx" in text


DAMAGES = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "cut short or replaced"),
    "foreign": (lambda p: p.write_bytes(p.read_bytes()[::-1]), "expected SHA-256"),
    "missing": (lambda p: p.unlink(), "expected an engine, found none"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_was_not_built(package: Package, damage: str) -> None:
    change, wanted = DAMAGES[damage]
    path = package.folder / SET.folder / "decoder.0.engine"
    change(path)
    text = refusal(package)
    assert str(path) in text
    assert wanted in text


def test_an_engine_that_the_manifest_does_not_know(package: Package) -> None:
    """Files alone make no set, whatever they are called, and none is taken in another's place."""
    (built,) = package.manifest.engines
    for file in built.files:
        path = package.folder / file.path
        path.with_name(f"{path.stem}.copy.engine").write_bytes(b"something else")
    assert set(engines.find_engines(package, "tensorrt-rtx", HERE).paths.values()) == {
        package.folder / file.path for file in built.files
    }
    assert "expected engines for tensorrt-rtx, found none" in refusal(with_sets(package))


def test_a_graph_without_an_engine(package: Package) -> None:
    (built,) = package.manifest.engines
    text = refusal(with_sets(package, replace(built, files=built.files[:-1])))
    assert "expected an engine of decoder.1.onnx, found none" in text


def test_engines_outside_the_package_are_refused(package: Package) -> None:
    (built,) = package.manifest.engines
    outside = replace(built.files[0], path="../elsewhere.engine")
    with pytest.raises(Exception, match="expected paths inside the package"):
        with_sets(package, replace(built, files=(outside,)))

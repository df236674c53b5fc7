"""A backend asked for by name is that one or an error; `auto` says which it took and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from avl_runtime import LVLM
from avl_runtime.cli.eval import main as avl_eval
from avl_runtime.cli.run import main as avl_run
from avl_runtime.execute import choose
from avl_runtime.execute.device import ort_cuda
from avl_runtime.execute.protocol import BackendError
from avl_runtime.machine.installation import install, uninstall
from avl_runtime.machine.probe import Gpu, Machine
from avl_runtime.package.engine_sets import EngineSet, Limits
from avl_runtime.package.package import PackageError, load_package
from device.loop_cases import ask, same
from device.sessions import HostSessions, open_on_sessions
from device.standin import HostDevice

ADA = Gpu("NVIDIA GeForce RTX 4090", 89, 24 << 30)
GPU = Machine("linux-x86_64", (ADA,), "580.65.06", (13, 0), None)
BARE = Machine("linux-x86_64", (), None, None, "no NVIDIA driver: libcuda.so.1 is missing")
WITH_CUDA = install("onnxruntime-gpu[cuda,cudnn]")
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def onnxruntime(*providers: str, cuda: str = "13.0") -> Any:
    return SimpleNamespace(
        __version__="1.31.1", cuda_version=cuda, get_available_providers=lambda: list(providers)
    )


@pytest.mark.parametrize(
    ("machine", "module", "says"),
    [
        (BARE, onnxruntime(CUDA, CPU), "expected an NVIDIA GPU for ort-cuda, found none (no NVID"),
        (
            GPU,
            onnxruntime(CPU, cuda=""),
            "found onnxruntime 1.31.1 with CPUExecutionProvider; "
            f"run: {uninstall('onnxruntime')} && {WITH_CUDA}, or use",
        ),
        (
            replace(GPU, driver="550.54.14", cuda=(12, 4)),
            onnxruntime(CUDA, CPU),
            "expected a driver for CUDA 13 (580 or newer), which onnxruntime-gpu 1.31.1 is made "
            "for, found driver 550.54.14 for CUDA 12.4; install a newer driver",
        ),
    ],
)
def test_what_ort_cuda_lacks_is_named(machine: Machine, module: Any, says: str) -> None:
    with pytest.raises(BackendError) as error:
        ort_cuda.check_ort_cuda(machine, module)
    assert says in str(error.value)
    assert "--backend ort-cpu" in str(error.value)


def test_ort_cuda_takes_a_machine_that_has_everything() -> None:
    ort_cuda.check_ort_cuda(GPU, onnxruntime(CUDA, CPU))
    ort_cuda.check_ort_cuda(replace(GPU, cuda=(14, 1)), onnxruntime(CUDA, CPU))
    ort_cuda.check_ort_cuda(replace(GPU, cuda=(12, 4)), onnxruntime(CUDA, CPU, cuda="12.8"))


def test_a_provider_that_does_not_start_is_an_error(tiny_package: Path) -> None:
    """ONNX Runtime itself goes on with the CPU after a warning."""
    without_cuda = HostSessions(HostDevice(interpreted=False), providers=[CPU])
    with pytest.raises(BackendError, match="cannot load CUDA or cuDNN; run: ") as error:
        open_on_sessions(without_cuda, load_package(tiny_package))
    assert f"cuDNN; run: {WITH_CUDA}, or" in str(error.value)


def test_a_graph_that_does_not_load_is_an_error(tiny_package: Path) -> None:
    sessions = HostSessions(HostDevice(interpreted=False))
    sessions.failure = RuntimeError("CUDA failure 2: out of memory\nsomewhere")
    with pytest.raises(BackendError) as error:
        open_on_sessions(sessions, load_package(tiny_package))
    assert "loads on stand-in, found: CUDA failure 2: out of memory; free" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_graph_of_other_sizes_than_the_manifest_is_an_error(tiny_package: Path) -> None:
    package = load_package(tiny_package)
    dims = replace(package.manifest.dims, num_kv_heads=2)
    package = replace(package, manifest=replace(package.manifest, dims=dims))
    with pytest.raises(PackageError, match=r"k_active\.0 \[any, 2, any, 32\] as avl\.json says"):
        open_on_sessions(HostSessions(HostDevice(interpreted=False)), package)


@pytest.mark.parametrize("policy", ["dense", "avl", "avl:text=0.5,text_min=4", "fastv"])
@pytest.mark.parametrize("park_on_host", [False, True])
def test_ort_cuda_answers_as_ort_cpu(tiny: LVLM, policy: str, park_on_host: bool) -> None:
    device = HostDevice(interpreted=False)
    loaded = load_package(tiny.package.folder)
    backend = open_on_sessions(HostSessions(device), loaded, park_on_host=park_on_host)
    with mock.patch("avl_runtime.requests.loaded.load_backend", lambda *_, **__: backend):
        model = LVLM.load(tiny.package.folder, backend="ort-cuda")
    found, expected = (
        ask(each, policy, 12, index=1, return_placements=True) for each in (model, tiny)
    )
    same(found, expected)
    assert (expected.stats.backend, found.stats.backend) == ("ort-cpu", "ort-cuda")
    assert not device.done["replay"]


@pytest.mark.parametrize("name", ["auto", "ort-cpu"])
@pytest.mark.parametrize(("dtype", "slow"), [("fp16", True), ("fp32", False)])
def test_a_cpu_is_told_what_it_is_slow_at(
    tiny_package: Path, capsys: pytest.CaptureFixture[str], name: str, dtype: Any, slow: bool
) -> None:
    package = load_package(tiny_package)
    asked = replace(package, manifest=replace(package.manifest, dtype=dtype))
    with mock.patch.object(choose, "OrtBackend", lambda *_: SimpleNamespace(name="ort-cpu")):
        choose.load_backend(name, asked, 1, machine=BARE)
    assert ("one exported with --dtype fp32 is faster" in capsys.readouterr().err) == slow


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ort-cuda", "expected an NVIDIA GPU for ort-cuda, found none"),
        ("tensorrt", "expected engines for tensorrt, found none; run: avl-build"),
        ("tensorrt-rtx", "--backend tensorrt-rtx"),
    ],
)
def test_a_backend_asked_for_by_name_is_not_replaced(
    tiny_package: Path, capsys: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    package = load_package(tiny_package)
    with pytest.raises(BackendError) as error:
        choose.load_backend(name, package, 1, machine=BARE)
    assert says in str(error.value)
    assert avl_run([str(tiny_package), "What?", "--backend", name]) == 1
    assert avl_eval([str(tiny_package), "--samples", "1", "--backend", name]) == 1
    assert capsys.readouterr().out == ""


def test_auto_without_a_gpu(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = choose.load_backend("auto", load_package(tiny_package), 1, machine=BARE)
    assert backend.name == "ort-cpu"
    assert capsys.readouterr().err == (
        "avl: backend ort-cpu, the best that works (tensorrt: no engines in this package; "
        "tensorrt-rtx: no engines in this package; ort-cuda: no NVIDIA GPU (no NVIDIA driver: "
        "libcuda.so.1 is missing))\n"
    )


@pytest.mark.parametrize("name", ["ort-cpu", "auto"])
def test_parking_on_the_host_where_all_rows_are_there(tiny_package: Path, name: str) -> None:
    package = load_package(tiny_package)
    with pytest.raises(
        BackendError, match=r"--park host: expected .*, found ort-cpu.*; leave it out"
    ):
        choose.load_backend(name, package, 1, "host", BARE)
    with pytest.raises(BackendError, match="park to be device or host, found 'car'"):
        choose.load_backend(name, package, 1, "car", BARE)


def test_a_name_says_nothing(tiny_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choose.load_backend("ort-cpu", load_package(tiny_package), 1)
    assert capsys.readouterr().err == ""


def test_engines_for_another_machine_are_a_reason(tiny_package: Path) -> None:
    package = load_package(tiny_package)
    made = EngineSet(
        "tensorrt-rtx", "1.7.1.116", (120,), 13, GPU.platform, False, 8, Limits(8, 64, 64, 1), ()
    )
    package = replace(package, manifest=replace(package.manifest, engines=(made,)))
    ways = choose.candidates(package, 1, "device", GPU)
    backend, line = choose.best([ways[1], ways[3]])
    assert backend.name == "ort-cpu"
    assert "tensorrt-rtx: " in line
    assert "a GPU of compute capability 12.0" in line


def test_the_best_comes_first_and_the_rest_is_not_tried() -> None:
    tried = []

    def way(name: str, works: bool, unfit: str | None = None) -> choose.Candidate:
        def load() -> Any:
            tried.append(name)
            if not works:
                raise BackendError(f"{name} is broken")
            return name

        return choose.Candidate(name, load, unfit)

    ways = [way("a", True, "no engines"), way("b", False), way("c", True), way("d", True)]
    assert choose.best(ways) == (
        "c",
        "avl: backend c, the best that works (a: no engines; b: b is broken)",
    )
    assert tried == ["b", "c"]
    assert choose.best([way("a", True), way("b", True)])[1].endswith("(none is better)")
    with pytest.raises(BackendError, match="b is broken"):
        choose.best([way("a", True, "no engines"), way("b", False)])


def test_the_order_of_auto(tiny_package: Path) -> None:
    ways = choose.candidates(load_package(tiny_package), 1, "device", GPU)
    assert [way.name for way in ways] == ["tensorrt", "tensorrt-rtx", "ort-cuda", "ort-cpu"]
    assert [way.unfit for way in ways] == [*["no engines in this package"] * 2, None, None]

"""Packages exported once a session, and the library of CPU kernels as it was installed."""

from __future__ import annotations

import ctypes
import gc
import platform
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import avl_export
from avl_export.cli import main as export
from avl_plugins import cpu
from avl_plugins.cpu.build import (
    AMX_LEVEL,
    ARM,
    LINEAR_LEVELS,
    QUANTIZED_LEVELS,
    CompileError,
    compiler,
    knows,
)
from avl_plugins.cpu.host import host
from avl_plugins.policies import spec
from avl_runtime import LVLM
from avl_runtime.requests import Scheduler
from support.compiled import require
from support.torchlib import one_table

__all__ = ["one_table"]

Packages = Callable[[Path], Path]


def pytest_configure() -> None:
    """In a shell's background Ctrl-C is ignored, also by programs that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Some 700,000 objects of imported modules are not gone through for garbage again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def own_policies() -> Iterator[None]:
    """A module's policies are known to it alone: others list all that are known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spec, "_KINDS", dict(spec._KINDS))
        yield


def pytest_sessionstart() -> None:
    """There is no garbage to collect among modules that are imported."""
    gc.disable()


def pytest_unconfigure() -> None:
    """What is still held is given back as usual."""
    gc.unfreeze()


# No test fails because a machine is busy.
settings.register_profile("avl", deadline=None)
settings.load_profile("avl")


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """The embedded model's Hugging Face folder."""
    return Path(avl_export.__file__).parent / "models" / "avl-tiny"


@pytest.fixture(scope="session")
def package_of(tmp_path_factory: pytest.TempPathFactory, one_table: None) -> Packages:
    """Maps a checkpoint folder to its exported package."""
    made: dict[Path, Path] = {}

    def package(checkpoint: Path) -> Path:
        if checkpoint not in made:
            out = tmp_path_factory.mktemp("package") / "model.avl"
            assert export(["--model", str(checkpoint), "--out", str(out), "--no-check"]) == 0
            made[checkpoint] = out
        return made[checkpoint]

    return package


@pytest.fixture(scope="session")
def tiny_package(tiny_checkpoint: Path, package_of: Packages) -> Path:
    """avl-tiny as a package."""
    return package_of(tiny_checkpoint)


@pytest.fixture(scope="session")
def tiny(tiny_package: Path) -> LVLM:
    """avl-tiny, loaded."""
    return LVLM.load(tiny_package)


@pytest.fixture(scope="session")
def kernels() -> Path:
    """Where there is a C compiler, an installation without the library is a fault."""
    try:
        compiler()
    except CompileError as error:
        pytest.skip(str(error))
    library = cpu.library()
    assert library is not None, "install avl again"
    return library


@pytest.fixture(scope="session")
def linear_kernel(kernels: Path) -> Path:
    """The library, where this processor has what its kernel for plain linears needs."""
    if platform.machine() not in ARM:
        require(LINEAR_LEVELS["avl_linear_avx2"])
    return kernels


@pytest.fixture(scope="session")
def quantized_kernel(kernels: Path) -> Path:
    """The library, where this processor has what its kernel for quantized linears needs."""
    if platform.machine() not in ARM:
        require(QUANTIZED_LEVELS["avl_quantized_avx2"])
    return kernels


@pytest.fixture(scope="session")
def amx_kernel(quantized_kernel: Path) -> Path:
    """The library, where the compiler, the processor and the system have AMX for it."""
    require(AMX_LEVEL)
    if not knows(compiler(), AMX_LEVEL):
        pytest.skip("this compiler does not know AMX")
    # arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    if ctypes.CDLL(None).syscall(158, 0x1023, 18):
        pytest.skip("this system does not let a process use AMX")
    kernels = host()
    assert kernels is not None
    assert "AMX" in kernels.instructions()
    return quantized_kernel


@pytest.fixture
def unending(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Options of a reply that takes more than a minute, so that it ends by what a test does."""
    step = Scheduler.step

    def slow_step(scheduler: Scheduler) -> object:
        time.sleep(0.05)
        return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", slow_step)
    return {"max_new_tokens": 1500, "min_new_tokens": 1500}

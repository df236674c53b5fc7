"""Loading engines: the interface that is used is the real one, and what fails is one sentence."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avl_plugins.errors import AvlError
from avl_runtime.execute.device import engine as engine_module
from avl_runtime.execute.device.memory import Memory
from avl_runtime.execute.device.protocol import DeviceError
from avl_runtime.execute.device.tensors import Tensor
from avl_runtime.execute.protocol import BackendError
from avl_runtime.package.engine_sets import Limits
from avl_runtime.package.package import Package, load_package
from device import standin_engines as engines
from device.standin import HostDevice

CLASSES = ("Runtime", "ICudaEngine", "IExecutionContext")


@pytest.fixture(scope="module")
def real() -> Any:
    return pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize("name", CLASSES)
def test_the_stand_in_has_the_names_and_arguments_of_tensorrt(real: Any, name: str) -> None:
    theirs = getattr(real, name)
    methods = inspect.getmembers(getattr(engines, name), inspect.isfunction)
    checked = 0
    for method, function in methods:
        if method.startswith("_"):
            continue
        says = getattr(theirs, method).__doc__
        ours = list(inspect.signature(function).parameters)[1:]
        signatures = re.findall(rf"{method}\(self: [^,)]+,? ?(.*)\) ->", says)
        names = [re.findall(r"(?:^|, )(\w+): ", signature) for signature in signatures]
        assert ours in names, f"{method}: {ours} is none of {names}"
        checked += 1
    assert checked
    for attribute in ("num_io_tensors", "num_optimization_profiles"):
        assert name != "ICudaEngine" or isinstance(getattr(theirs, attribute), property)


def test_what_the_runtime_uses_of_tensorrt_is_there(real: Any) -> None:
    source = inspect.getsource(engine_module)
    for owner, pattern in (
        (real.IExecutionContext, r"(?:self\._context|context)\.([a-z_0-9]+)\("),
        (real.ICudaEngine, r"engine\.([a-z_0-9]+)"),
        (real, r"module\.([A-Z]\w+)"),
    ):
        found = set(re.findall(pattern, source)) - {"tell", "queue", "inputs", "outputs", "shape"}
        assert found
        for name in found:
            assert hasattr(owner, name), name
    assert real.ExecutionContextAllocationStrategy.USER_MANAGED
    assert real.ILogger.ERROR < real.ILogger.WARNING
    assert {"FLOAT", "HALF", "BF16", "INT64", "INT32", "BOOL", "UINT8"} <= set(
        real.DataType.__members__
    )


def test_a_file_that_is_no_engine_for_the_real_library(real: Any, tmp_path: Path) -> None:
    """Without a GPU, with the real module: it refuses, and the sentence holds what it said."""
    path = tmp_path / "decoder.0.engine"
    path.write_bytes(b"not an engine" * 100)
    with pytest.raises(BackendError, match=r"tensorrt_rtx .*found: .+; build it again"):
        engine_module.Library(real).load(path, Memory(HostDevice()))


@pytest.fixture
def package(tiny_package: Path) -> Package:
    return load_package(tiny_package)


def test_an_engine_that_does_not_load(package: Package, tmp_path: Path) -> None:
    made = engines.write_engines(package, tmp_path)
    made.paths["decoder.1.onnx"].write_bytes(b"\0\1\2")
    with pytest.raises(BackendError) as error:
        engines.open_on(HostDevice(), package, made)
    told = str(error.value)
    assert "decoder.1.engine: expected an engine that tensorrt_rtx 1.7.1 loads on stand-in" in told
    assert "found: Magic tag does not match; build it again" in told
    assert "\n" not in told


def test_engines_larger_than_the_device(package: Package, tmp_path: Path) -> None:
    made = engines.write_engines(package, tmp_path)
    with pytest.raises(BackendError) as error:
        engines.open_on(HostDevice(3 * engines.WEIGHTS + 100), package, made)
    assert "behind 0.3 MiB of weights, found 0.0 MiB free of 0.3 MiB; build" in str(error.value)
    assert "--max-prompt" in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_and_scratch_are_counted(package: Package, tmp_path: Path) -> None:
    backend = engines.open_on(HostDevice(), package, engines.write_engines(package, tmp_path))
    assert backend.memory.used["weights"] == 3 * engines.WEIGHTS
    assert backend.memory.used["scratch"] == 2 * engines.SCRATCH  # the largest profile's


def test_a_shape_outside_the_profile(package: Package, tmp_path: Path) -> None:
    made = engines.write_engines(package, tmp_path, Limits(8, 64, 512, 1))
    backend = engines.open_on(HostDevice(), package, made)
    segment = backend.segments[0]
    with pytest.raises(DeviceError, match=r"takes hidden \[2, 1, 192\], found: set dimensions"):
        segment.run({"hidden": Tensor(0, (2, 1, 192))}, "step")
    with pytest.raises(DeviceError, match="found: no tensor nonsense"):
        segment.run({"nonsense": Tensor(0, (1,))}, "step")


def test_an_encoder_gives_what_onnxruntime_gives(package: Package, tmp_path: Path) -> None:
    from avl_runtime.execute.host.ort import OrtBackend

    backend = engines.open_on(HostDevice(), package, engines.write_engines(package, tmp_path))
    picture = np.random.default_rng(0).random((1, 3, 168, 168)).astype(np.float32)
    (found,) = backend.encode("image", {"pixel_values": picture})
    (expected,) = OrtBackend(package, 1).encode("image", {"pixel_values": picture})
    assert np.allclose(found, expected, atol=1e-4)


def test_a_library_that_does_not_start(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avl_runtime.execute.device import tensorrt
    from device.test_choose import GPU

    made = engines.write_engines(package, tmp_path)
    monkeypatch.setattr(tensorrt, "find_engines", lambda *_: made)
    monkeypatch.setitem(tensorrt.MODULES, "tensorrt-rtx", "no_such_module")
    with pytest.raises(BackendError, match=r"expected tensorrt-rtx 1\.7\.1 to start, found: No"):
        tensorrt.load_engines(package, "tensorrt-rtx", GPU)


def test_tensorrt_itself_is_asked_for_when_it_is_missing(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avl_runtime.execute import choose
    from device.test_choose import GPU

    with pytest.raises(AvlError, match="expected engines for tensorrt, found none"):
        choose.load_backend("tensorrt", package, 1, machine=GPU)

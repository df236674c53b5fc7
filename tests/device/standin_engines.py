"""A stand-in for TensorRT's Python module: engines that run their graph through ONNX Runtime.

It has the part of the interface that the runtime uses, and holds it to what TensorRT asks: shapes
within the profile, every address given, scratch memory of ours, and no recording of a run whose
shapes have not run before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from avl_runtime.execute.device.backend import DeviceBackend
from avl_runtime.execute.device.tensorrt import open_engines
from avl_runtime.execute.device.trusted import Engines
from avl_runtime.package.engine_sets import EngineSet, Limits
from avl_runtime.package.package import Package
from device.standin import HostDevice

SCRATCH = 4096
WEIGHTS = 100_000
LIMITS = Limits(decode_rows=8, prompt_rows=64, cache_rows=512, batch=2)
FLOATS = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}
STANDING = ("active_standing.", "parked_standing.")
CACHES = ("k_active.", "v_active.", "k_parked.", "v_parked.", *STANDING)


class TensorIOMode(IntEnum):
    NONE, INPUT, OUTPUT = 0, 1, 2


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = 0, 1, 2


class ILogger:
    ERROR, WARNING = 1, 2

    def log(self, severity: int, text: str) -> None:
        raise NotImplementedError


class Library:
    """The module; `device` is the one that its engines run on."""

    __name__ = "tensorrt_rtx"
    __version__ = "1.7.1"
    ILogger = ILogger
    TensorIOMode = TensorIOMode
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, device: HostDevice) -> None:
        self.device = device

    def Runtime(self, logger: ILogger) -> Runtime:
        return Runtime(self.device, logger)


class Runtime:
    def __init__(self, device: HostDevice, logger: ILogger) -> None:
        self._device, self._logger = device, logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        data = bytes(serialized_engine)
        try:
            told = json.loads(data)
        except ValueError:
            self._logger.log(ILogger.ERROR, "Magic tag does not match\n")
            return None
        return ICudaEngine(self._device, self._logger, told)


class ICudaEngine:
    def __init__(self, device: HostDevice, logger: ILogger, told: Mapping[str, Any]) -> None:
        self._device, self._logger = device, logger
        self._weights = device.allocate(WEIGHTS)
        self._limits = Limits(**told["limits"])
        self._row_block = told["row_block"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", told["weights"]
        )
        graph = Path(told["graph"]).read_bytes()
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._inputs = {one.name: one for one in self._session.get_inputs()}
        self._outputs = {one.name: one for one in self._session.get_outputs()}
        self._decoder = "hidden" in self._inputs
        self.num_optimization_profiles = 2 if self._decoder else 1
        self.num_io_tensors = len(self._inputs) + len(self._outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=FLOATS[(self._inputs | self._outputs)[name].type])

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return SCRATCH * (1 + profile_index)

    def create_execution_context(self, strategy: int) -> IExecutionContext:
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] = (0, 0)
        self._profile = -1
        self._ran: dict[str, tuple[int, ...]] | None = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == self._engine._device.stream
        self._profile = profile_index
        return profile_index < self._engine.num_optimization_profiles

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= self._engine.get_device_memory_size_for_profile_v2(self._profile)
        self._scratch = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self._engine._inputs:
            return self._refuse(f"no input {name}")
        if self._engine._decoder and not self._fits(name, shape):
            return self._refuse(f"set dimensions of {name} {shape} are not in the profile")
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._inputs and name not in self._engine._outputs:
            return self._refuse(f"no tensor {name}")
        assert memory % 256 == 0
        self._addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """An encoder's, which the tests' pictures leave as they are declared or one by one."""
        inputs = self._feeds()
        return self._engine._session.run([name], inputs)[0].shape

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream == self._engine._device.stream
        return self._ran is not None and self._ran == self._shapes

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, device = self._engine, self._engine._device
        assert stream_handle == device.stream
        assert set(self._shapes) == set(engine._inputs)
        assert set(self._addresses) == set(engine._inputs) | set(engine._outputs)
        if device._recording is not None:
            assert self._ran == self._shapes, "recorded before these shapes have run"
        self._ran = dict(self._shapes)
        shapes, addresses = dict(self._shapes), dict(self._addresses)

        def run() -> None:
            device.done["engine"] += 1
            assert self._shapes == shapes, "replayed after the context got other shapes"
            device.bytes_at(*self._scratch)[:] = 0xFF
            outputs = engine._session.run(list(engine._outputs), self._feeds(shapes, addresses))
            for name, array in zip(engine._outputs, outputs, strict=True):
                to = device.bytes_at(addresses[name], array.nbytes)
                to[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

        device.enqueue(run)
        return True

    def _feeds(
        self,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        addresses: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        shapes, addresses = shapes or self._shapes, addresses or self._addresses
        found = {}
        for name, declared in self._engine._inputs.items():
            dtype, shape = np.dtype(NUMPY[FLOATS[declared.type]]), shapes[name]
            nbytes = int(np.prod(shape)) * dtype.itemsize
            if addresses is self._addresses:  # only a shape is asked for
                found[name] = np.zeros(shape, dtype)
                continue
            array = self._engine._device.bytes_at(addresses[name], nbytes).view(dtype)
            if name.startswith(CACHES) and self._engine._row_block > 1:
                batch, heads, blocks, block, width = shape
                shape = (batch, heads, blocks * block, width)
            found[name] = array.reshape(shape)
            if declared.type != "tensor(int64)":
                assert np.isfinite(found[name]).all(), f"{name} is not finite"
        for name in found:
            if name.startswith(STANDING):
                keys = f"k_{name.replace('_standing', '')}"
                assert found[name].shape[2] == found[keys].shape[2], "every row stands somewhere"
        return found

    def _fits(self, name: str, shape: tuple[int, ...]) -> bool:
        engine, limits = self._engine, self._engine._limits
        prompt = self._profile == 1
        most = limits.prompt_rows if prompt else limits.decode_rows
        batch = 1 if prompt else limits.batch
        if name.startswith(CACHES):
            blocked = engine._row_block > 1
            rows = shape[2] * (shape[3] if blocked else 1)
            right = len(shape) == 4 + blocked and (not blocked or shape[3] == engine._row_block)
            return right and 1 <= shape[0] <= batch and 1 <= rows <= limits.cache_rows
        if name in ("hidden", "position_ids"):
            rows = shape[1] if name == "hidden" else shape[-1]
            return 1 <= rows <= most and 1 <= shape[-2 if name != "hidden" else 0] <= batch
        return True

    def _refuse(self, text: str) -> bool:
        self._engine._logger.log(ILogger.ERROR, text)
        return False


def write_engines(
    package: Package, folder: Path, limits: Limits = LIMITS, row_block: int = 8
) -> Engines:
    """Files that the stand-in loads, as if they had been built and checked."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for graph in package.manifest.graphs:
        paths[graph] = folder / f"{Path(graph).stem}.engine"
        told = {
            "graph": str(package.folder / graph),
            "weights": str(package.weights_folder),
            "row_block": row_block,
            "limits": {
                name: getattr(limits, name)
                for name in ("decode_rows", "prompt_rows", "cache_rows", "batch")
            },
        }
        paths[graph].write_text(json.dumps(told))
    made = EngineSet("tensorrt-rtx", "1.7.1", (), 13, "linux-x86_64", False, row_block, limits, ())
    return Engines(made, paths)


def open_on(
    device: HostDevice, package: Package, engines: Engines, *, park_on_host: bool = False
) -> DeviceBackend:
    return open_engines(package, engines, Library(device), device, park_on_host=park_on_host)

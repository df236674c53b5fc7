"""Engines of TensorRT and TensorRT-RTX: loaded, given addresses, and queued on the stream.

Both libraries have the same Python interface. An execution context keeps its profile and shapes,
and a recorded run relies on them: steps that read parked rows, steps that do not and prompts each
have a context of their own. Scratch memory is ours, one piece for all contexts: they run one after
another on one stream.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.graph_io import is_cached_rows
from avl_runtime.execute.device.elements import ELEMENTS, Element
from avl_runtime.execute.device.memory import ALIGNMENT, Buffer, Memory
from avl_runtime.execute.device.protocol import DeviceError
from avl_runtime.execute.device.tensors import Tensor, Use
from avl_runtime.execute.protocol import BackendError

PROFILES: Mapping[Use, int] = {"step": 0, "refresh": 0, "prompt": 1}
_FLOATS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
_WHOLE = {"INT64": np.int64, "INT32": np.int32, "BOOL": np.bool_, "UINT8": np.uint8}


class Library:
    """TensorRT's or TensorRT-RTX's module, its runtime, and what they complain of."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.said: list[str] = []
        said = self.said

        class Log(module.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, text: str) -> None:
                if severity <= module.ILogger.ERROR:
                    said.append(" ".join(text.split()))

        self._logger = Log()  # the runtime does not keep it
        self._runtime = module.Runtime(self._logger)

    def load(self, path: Path, memory: Memory) -> Any:
        """The engine in a file, its weights on the device.

        Raises:
            BackendError: the library refuses it.
        """
        free, _ = memory.device.memory()
        self.said.clear()
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            left, total = memory.device.memory()
            raise BackendError(
                f"{path}: expected an engine that {self.module.__name__} "
                f"{self.module.__version__} loads on {memory.device.name} with {left >> 20} of "
                f"{total >> 20} MiB free, found: {self.complaint}; build it again on this machine "
                "with avl-build, or use --backend ort-cpu"
            )
        memory.count("weights", max(0, free - memory.device.memory()[0]))
        return engine

    @property
    def complaint(self) -> str:
        """The errors of the last call, in one line."""
        return "; ".join(self.said)[:400] or "no message"


class Scratch:
    """Memory that all contexts use in turn."""

    def __init__(self, memory: Memory, engines: list[Any]) -> None:
        """
        Raises:
            OutOfDeviceMemoryError: it does not fit.
        """
        sizes = [
            int(engine.get_device_memory_size_for_profile_v2(profile))
            for engine in engines
            for profile in range(engine.num_optimization_profiles)
        ]
        self.buffer: Buffer = memory.allocate("scratch", max([ALIGNMENT, *sizes]))


class Context:
    """An execution context in one profile, and what it was told last."""

    def __init__(
        self, library: Library, engine: Any, profile: int, scratch: Scratch, stream: int, path: Path
    ) -> None:
        """
        Raises:
            BackendError: it cannot be made.
        """
        strategy = library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        library.said.clear()
        self._context = engine.create_execution_context(strategy)
        if self._context is None or not self._context.set_optimization_profile_async(
            profile, stream
        ):
            raise BackendError(
                f"{path}: expected an engine with a profile {profile}, found: "
                f"{library.complaint}; build it again with avl-build"
            )
        self._context.set_device_memory(scratch.buffer.address, scratch.buffer.nbytes)
        self._library, self._path, self._stream = library, path, stream
        self._scratch = scratch  # is in use as long as the context is
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = library.module.TensorIOMode.INPUT
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == is_input]
        self.outputs = [name for name in names if name not in self.inputs]
        self._told: dict[str, Tensor] = {}

    def tell(self, name: str, tensor: Tensor) -> None:
        """Say where a tensor is and, of an input, its shape.

        Raises:
            DeviceError: the engine has no such tensor, or does not take the shape.
        """
        if self._told.get(name) == tensor:
            return
        context = self._context
        self._library.said.clear()
        told = name not in self.inputs or context.set_input_shape(name, tensor.shape)
        if not told or not context.set_tensor_address(name, tensor.address):
            raise DeviceError(
                f"{self._path}: expected an engine that takes {name} {list(tensor.shape)}, found: "
                f"{self._library.complaint}; build it again with larger limits (avl-build --help)"
            )
        self._told[name] = tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an output, once all inputs are told."""
        return tuple(self._context.get_tensor_shape(name))

    def recordable(self) -> bool:
        """Whether a run can be recorded: TensorRT-RTX may still be compiling for these shapes."""
        ask = getattr(self._context, "is_stream_capturable", None)  # TensorRT has no such question
        return ask is None or bool(ask(self._stream))

    def queue(self) -> None:
        """Queue a run.

        Raises:
            DeviceError: the library refuses it.
        """
        self._library.said.clear()
        if not self._context.execute_async_v3(self._stream):
            raise DeviceError(
                f"{self._path}: expected a run, found: {self._library.complaint}; check the GPU "
                "with avl-doctor, or use --backend ort-cpu"
            )


class EngineSegment:
    """A decoder segment as an engine; see `tensors.SegmentRunner`."""

    def __init__(self, contexts: Mapping[Use, Context], row_block: int) -> None:
        self._contexts = contexts
        self._row_block = row_block

    def recordable(self, use: Use) -> bool:
        return self._contexts[use].recordable()

    def run(self, tensors: Mapping[str, Tensor], use: Use) -> None:
        context = self._contexts[use]
        for name, tensor in tensors.items():
            context.tell(name, self._blocked(name, tensor))
        context.queue()

    def _blocked(self, name: str, tensor: Tensor) -> Tensor:
        block = self._row_block
        if block == 1 or not is_cached_rows(name):
            return tensor
        batch, heads, rows, width = tensor.shape
        return Tensor(tensor.address, (batch, heads, rows // block, block, width))


class EngineEncoder:
    """An encoder as an engine; its inputs and outputs pass through the host."""

    def __init__(self, context: Context, engine: Any, memory: Memory) -> None:
        self._context, self._memory = context, memory
        self._types = {
            name: engine.get_tensor_dtype(name).name for name in context.inputs + context.outputs
        }

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        device, kept = self._memory.device, []
        for name in self._context.inputs:
            element = self._element(name)
            array = inputs[name]
            array = (
                np.ascontiguousarray(array, _WHOLE[self._types[name]])
                if element is None
                else element.encode(array)
            )
            kept.append(self._memory.allocate("scratch", array.nbytes))
            device.upload(kept[-1].address, array)
            self._context.tell(name, Tensor(kept[-1].address, array.shape))
        found: list[tuple[str, NDArray[Any]]] = []
        for name in self._context.outputs:
            element = self._element(name)
            stored = np.dtype(_WHOLE[self._types[name]]) if element is None else element.stored
            array = np.empty(self._context.shape(name), stored)
            kept.append(self._memory.allocate("scratch", array.nbytes))
            self._context.tell(name, Tensor(kept[-1].address, array.shape))
            found.append((name, array))
        self._context.queue()
        for buffer, (_, array) in zip(kept[len(self._context.inputs) :], found, strict=True):
            device.download(array, buffer.address)
        device.synchronize()
        decoded = []
        for name, array in found:
            element = self._element(name)
            decoded.append(array if element is None else element.decode(array))
        return decoded

    def _element(self, name: str) -> Element | None:
        kind = self._types[name]
        return ELEMENTS[_FLOATS[kind]] if kind in _FLOATS else None

"""ONNX Runtime on memory that is ours: segments read and write a device's addresses in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from avl_runtime.execute.device.elements import Element
from avl_runtime.execute.device.tensors import Tensor, Use
from avl_runtime.package.graph_fit import check_media

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}


class OrtSegment:
    """A decoder segment as a session on the device's own stream; see `tensors.SegmentRunner`.

    ONNX Runtime allocates while it runs, which a recording cannot hold.
    """

    def __init__(self, session: Any, device_type: str) -> None:
        """
        Args:
            session: an onnxruntime.InferenceSession.
            device_type: what ONNX Runtime calls the device whose addresses it is given, as "cuda".
        """
        self._session = session
        self._device_type = device_type
        self._inputs = {one.name: _TYPES[one.type] for one in session.get_inputs()}
        self._outputs = {one.name: _TYPES[one.type] for one in session.get_outputs()}
        self._options = ort.RunOptions()
        # The stream keeps the order; waiting is left to whoever needs the results.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._bindings: dict[Use, tuple[Any, dict[str, Tensor]]] = {}

    def recordable(self, use: Use) -> bool:
        return False

    def run(self, tensors: Mapping[str, Tensor], use: Use) -> None:
        if use not in self._bindings:
            self._bindings[use] = self._session.io_binding(), {}
        binding, told = self._bindings[use]
        for name, tensor in tensors.items():
            if told.get(name) == tensor:
                continue
            place = (self._device_type, 0)
            if name in self._inputs:
                binding.bind_input(name, *place, self._inputs[name], tensor.shape, tensor.address)
            else:
                binding.bind_output(name, *place, self._outputs[name], tensor.shape, tensor.address)
            told[name] = tensor
        self._session.run_with_iobinding(binding, self._options)


class OrtEncoder:
    """An encoder as a session; its inputs and outputs pass through the host."""

    def __init__(self, session: Any, file: str, element: Element) -> None:
        self._session, self._file, self._element = session, file, element

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        feeds = {
            name: self._element.encode(array) if array.dtype == np.float32 else array
            for name, array in inputs.items()
        }
        check_media(self._session, self._file, feeds)
        return [np.asarray(array) for array in self._session.run(None, feeds)]

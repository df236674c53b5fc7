"""`triton_python_backend_utils` as the server's documents describe it, with no server behind it.

What the documents forbid raises: a response behind the final one, none where no flag is given.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        assert isinstance(values, np.ndarray)
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS = range(7)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        assert error is None or isinstance(error, TritonError)
        self.tensors, self.error = {one.name(): one for one in output_tensors}, error

    def text(self, name: str) -> str:
        values = self.tensors[name].as_numpy()
        assert values.shape == (1,) and values.dtype == np.object_
        return bytes(values[0]).decode()


class Logger:
    told: list[str] = []  # noqa: RUF012

    @classmethod
    def log_error(cls, text: str) -> None:
        cls.told.append(text)


class Sender:
    """Of one request; `responses` are those sent, `ended` is set behind the last."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.ended = threading.Event()
        self.cancelled = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if self.ended.is_set():
            raise RuntimeError("a response behind the final one")
        if response is None and flags == 0:
            raise RuntimeError("neither a response nor a flag")
        if response is not None:
            assert isinstance(response, InferenceResponse)
            self.responses.append(response)
        if flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.ended.set()

    def is_cancelled(self) -> bool:
        return self.cancelled


class Request:
    def __init__(self, **inputs: Any) -> None:
        self.tensors: dict[str, Tensor] | None = {}
        for name, value in inputs.items():
            found = np.atleast_1d(np.asarray(value, np.bool_ if value in (True, False) else object))
            self.tensors[name] = Tensor(name, found)
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    assert request.tensors is not None, "tensors are gone when execute has returned"
    return request.tensors.get(name)

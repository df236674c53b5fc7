"""ONNX Runtime's sessions on a stand-in: the CPU's, run when their turn on the stream comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxruntime as ort

from avl_runtime.execute.device.backend import DeviceBackend
from avl_runtime.execute.device.ort_cuda import PROVIDER, open_sessions
from avl_runtime.package.package import Package
from device.standin import HostDevice

CPU = "CPUExecutionProvider"


class HostSessions:
    """onnxruntime as `open_sessions` uses it."""

    __version__ = "1.31.1"
    SessionOptions = ort.SessionOptions

    def __init__(self, device: HostDevice, providers: Sequence[str] = (PROVIDER, CPU)) -> None:
        self.device, self.providers = device, providers
        self.failure: Exception | None = None

    def InferenceSession(self, graph: bytes, options: Any, providers: list[Any]) -> HostSession:
        (name, told), last = providers
        assert (name, last) == (PROVIDER, CPU)
        assert told["user_compute_stream"] == str(self.device.stream)
        if self.failure is not None:
            raise self.failure
        return HostSession(self, ort.InferenceSession(graph, options, providers=[CPU]))


class HostSession:
    def __init__(self, sessions: HostSessions, session: ort.InferenceSession) -> None:
        self._sessions, self._session = sessions, session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return list(self._sessions.providers)

    def run_with_iobinding(self, binding: Any, options: ort.RunOptions) -> None:
        device = self._sessions.device
        assert device._recording is None
        key = "disable_synchronize_execution_providers"
        assert options.get_run_config_entry(key) == "1"
        device.enqueue(lambda: self._session.run_with_iobinding(binding))


def open_on_sessions(
    sessions: HostSessions, package: Package, *, park_on_host: bool = False
) -> DeviceBackend:
    device = sessions.device
    return open_sessions(package, 1, device, sessions, "cpu", park_on_host=park_on_host)

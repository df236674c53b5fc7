"""Backends run a package's graphs, executors its decoder; all sit behind one protocol each."""

from avl_runtime.execute.choose import executor_on, load_backend
from avl_runtime.execute.host.segments import BoundSegment, HostBackend
from avl_runtime.execute.protocol import Backend, Batch, Executor

__all__ = [
    "Backend",
    "Batch",
    "BoundSegment",
    "Executor",
    "HostBackend",
    "executor_on",
    "load_backend",
]

"""Backends run a package's graphs; all of them sit behind one protocol."""

from avl_runtime.execute.choose import load_backend
from avl_runtime.execute.protocol import Backend, BoundSegment, HostBackend

__all__ = ["Backend", "BoundSegment", "HostBackend", "load_backend"]

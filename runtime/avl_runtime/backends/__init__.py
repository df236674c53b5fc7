"""Backends run a package's graphs; all of them sit behind one protocol."""

from avl_runtime.backends.choose import load_backend
from avl_runtime.backends.protocol import Backend, BoundSegment, HostBackend

__all__ = ["Backend", "BoundSegment", "HostBackend", "load_backend"]

"""Backends run a package's graphs; all of them sit behind one protocol."""

from avl_runtime.backends.protocol import Backend, BoundSegment, load_backend

__all__ = ["Backend", "BoundSegment", "load_backend"]

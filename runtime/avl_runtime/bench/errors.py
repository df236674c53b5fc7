"""What avl-bench refuses."""

from __future__ import annotations

from avl_plugins.errors import AvlError


class BenchError(AvlError):
    """A measurement cannot be made."""

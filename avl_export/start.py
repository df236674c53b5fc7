"""Where the console script avl-export begins, before torch or anything else is imported."""

from __future__ import annotations

from avl_runtime.cli.start import start


def main() -> int:
    """avl-export."""
    return start("avl-export", "avl_export.cli")

"""Where the exporter's console scripts begin, before torch or anything else is imported."""

from __future__ import annotations

from avl_runtime.cli.start import start


def main() -> int:
    """avl-export."""
    return start("avl-export", "avl_export.cli")


def check() -> int:
    """avl-check."""
    return start("avl-check", "avl_export.check.cli")

"""Bytes for people."""

from __future__ import annotations


def size_text(nbytes: int) -> str:
    """Bytes in the largest unit of which there is one: 512 B, 1.50 KiB, 2.25 GiB."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.2f} {unit}"
    return f"{nbytes} B"

"""Values of options that several commands take."""

from __future__ import annotations

import argparse


def names(text: str) -> list[str]:
    """Words separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def policies(text: str) -> list[str]:
    """Policies separated by commas; options contain commas too, and an `=`."""
    found: list[str] = []
    for part in names(text):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def count(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {text}")
    return number

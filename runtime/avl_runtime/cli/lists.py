"""Values of options that several commands take; what cannot be one ends with exit status 2."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from avl_plugins.errors import AvlError
from avl_plugins.policies import parse
from avl_runtime.cli.output import PICTURES
from avl_runtime.machine.resources import MOST_THREADS


def names(text: str) -> list[str]:
    """Words separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def names_of(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """A reader of words separated by commas, at least one, each once and of `allowed`."""

    def read(text: str) -> list[str]:
        found = names(text)
        unknown = [name for name in found if name not in allowed]
        if unknown or not found:
            raise argparse.ArgumentTypeError(
                f"expected {', '.join(allowed)}, found {unknown[0] if unknown else text!r}"
            )
        return _once(found)

    return read


def some_name(text: str) -> str:
    """What names something, and is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a name, found {text!r}; give one")
    return text


def path_name(text: str) -> Path:
    """A file or a folder; an empty name is not the working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError(
            f"expected a file or a folder, found {text!r}; name one, . is the working directory"
        )
    return Path(text)


def policy(text: str) -> str:
    """A policy, as it was written."""
    try:
        parse(text)
    except AvlError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def policies(text: str) -> list[str]:
    """Policies separated by commas; options contain commas too, and an `=`."""
    found: list[str] = []
    for part in names(text):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part)
    if not found:
        raise argparse.ArgumentTypeError(f"expected policies as dense,avl, found {text!r}")
    return _once([policy(one) for one in found])


def picture_name(text: str) -> Path:
    """A file name with the ending of a picture."""
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(
            f"expected a file name with {', '.join(PICTURES)}, found {text!r}"
        )
    return path


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def prefix_bytes(text: str) -> int | str | None:
    """Bytes of a prefix cache; auto lets the machine choose, off is None."""
    if text == "auto":
        return text
    return None if text == "off" else _whole(text, 1, ", auto or off")


def threads(text: str) -> int:
    """How many CPU threads."""
    found = count(text)
    if found > MOST_THREADS:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at most {MOST_THREADS}, found {text!r}"
        )
    return found


def none_or_more(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def number(text: str) -> float:
    """A finite number."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}")
    return found


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    found = number(text)
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 1, found {text!r}")
    return found


def seconds(text: str) -> float:
    """A time of at least 0."""
    found = number(text)
    if found < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more seconds, found {text!r}")
    return found


def some_seconds(text: str) -> float:
    """A time above 0."""
    found = number(text)
    if found <= 0:
        raise argparse.ArgumentTypeError(f"expected more than 0 seconds, found {text!r}")
    return found


def _whole(text: str, least: int, others: str = "") -> int:
    """A whole number of at least `least`; `others` names what a message says beside it."""
    try:
        found = int(text)
    except ValueError:
        found = least - 1
    if found < least:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least {least}{others}, found {text!r}"
        )
    return found


def _once(found: list[str]) -> list[str]:
    for one in found:
        if found.count(one) > 1:
            raise argparse.ArgumentTypeError(f"expected each once, found {one!r} twice")
    return found

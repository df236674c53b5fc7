"""Which versions of optional libraries are installed; imports none of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

# A library's names on the package index; those with a suffix say which CUDA they were made for.
NAMES = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "cuda-python": ("cuda-python", "cuda-bindings"),
}


@dataclass(frozen=True, slots=True)
class Library:
    """An installed library; `cuda` is the major version of CUDA that it was made for, if known."""

    version: str
    cuda: int | None

    @property
    def release(self) -> tuple[int, ...]:
        """The version's numbers, to compare: (10, 9, 1)."""
        return release(self.version)


def release(text: str) -> tuple[int, ...]:
    """The numbers of a version, to compare: (2, 13) of "2.13.0+cpu"; zeros at its end count not."""
    numbers = [int(part) for part in text.split("+", maxsplit=1)[0].split(".") if part.isdigit()]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def installed(name: str) -> Library | None:
    """The library called `name` on the package index, None if it is not there."""
    found = {one: _version(one) for one in NAMES.get(name, (name,))}
    first = next((one for one in found.values() if one is not None), None)
    if first is None:
        return None
    numbers = [int(one[-2:]) for one, known in found.items() if known and one[-4:-2] == "cu"]
    return Library(first, max(numbers, default=None))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

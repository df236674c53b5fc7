"""The packaged PTX: what `scripts/build_ptx.py` wrote, found by kernel and compute capability."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from avl_plugins.errors import AvlError
from avl_plugins.kernels.catalog import CAPABILITIES, VARIANTS, Variant

FOLDER = files("avl_plugins") / "ptx"


class KernelError(AvlError):
    """A packaged kernel is not there, damaged, or not for this device or these sizes."""


@dataclass(frozen=True, slots=True)
class PackagedKernel:
    """One PTX file and how to launch it.

    Attributes:
        entry: name of the function in the PTX.
        target: "sm_80" (generic: serves every later architecture) or "sm_90a".
        capabilities: compute capabilities, such as 89, that the file is chosen for.
        arguments: names and Triton types, such as ("q", "*fp16") or ("S", "i32"), in the order of
            the PTX's parameters.
        threads: of a program, all along x.
        shared: bytes of dynamic shared memory.
        sha256: of the PTX.
    """

    variant: Variant
    file: str
    entry: str
    target: str
    capabilities: tuple[int, ...]
    arguments: tuple[tuple[str, str], ...]
    threads: int
    shared: int
    sha256: str

    def ptx(self) -> str:
        """The PTX.

        Raises:
            KernelError: the file is missing, or is not the one that was packaged.
        """
        path = FOLDER / self.file
        try:
            text = gzip.decompress(path.read_bytes())
        except (OSError, EOFError) as error:
            raise KernelError(
                f"expected packaged PTX in {path}, found {error}; install avl anew"
            ) from error
        if hashlib.sha256(text).hexdigest() != self.sha256:
            raise KernelError(
                f"{path}: expected PTX with SHA-256 {self.sha256[:12]}…, found another; "
                "install avl anew"
            )
        return text.decode()


@functools.cache
def index() -> dict[str, Any]:
    """The index as it is on disk, `ptx/index.json`."""
    read: dict[str, Any] = json.loads((FOLDER / "index.json").read_text())
    return read


def kernel(name: str, capability: int) -> PackagedKernel:
    """The packaged kernel `name`, such as "update-1024", for a compute capability such as 89.

    Raises:
        KernelError: no such kernel, or the device is older than all that are served.
    """
    entries = index()["kernels"]
    if name not in entries:
        raise KernelError(
            f"expected a packaged kernel, found {name!r}; ptx/index.json lists what there is"
        )
    if capability < CAPABILITIES[0]:
        raise KernelError(
            f"expected a GPU of compute capability 8.0 or later, found {capability / 10}; "
            "use an ONNX Runtime backend"
        )
    entry = entries[name]
    # A later architecture than any known assembles the generic file, which comes first.
    found = next(
        (one for one in entry["files"] if capability in one["capabilities"]), entry["files"][0]
    )
    return PackagedKernel(
        variant=VARIANTS[name],
        file=found["file"],
        entry=entry["entry"],
        target=found["target"],
        capabilities=tuple(found["capabilities"]),
        arguments=tuple((one[0], one[1]) for one in entry["arguments"]),
        threads=entry["threads"],
        shared=found["shared"],
        sha256=found["sha256"],
    )

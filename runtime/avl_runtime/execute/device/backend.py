"""A package whose segments run on a device, and what its conversations share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avl_runtime.execute.device.elements import Element
from avl_runtime.execute.device.memory import Memory
from avl_runtime.execute.device.protocol import Device
from avl_runtime.execute.device.rows import Place, Staging
from avl_runtime.execute.device.tensors import SegmentRunner
from avl_runtime.execute.device.update import Mover
from avl_runtime.execute.protocol import BackendError
from avl_runtime.package.engine_sets import Limits
from avl_runtime.package.manifest import Manifest
from avl_runtime.vision import Kind


class EncoderRunner(Protocol):
    """An encoder, loaded."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs of one picture or video, on the host."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class DeviceBackend:
    """Graphs of one package, loaded on a device.

    Attributes:
        limits: the shapes that the segments take.
    """

    name: str
    manifest: Manifest
    memory: Memory
    element: Element
    segments: Sequence[SegmentRunner]
    encoders: Mapping[Kind, EncoderRunner]
    limits: Limits
    place: Place

    @property
    def dtype(self) -> np.dtype[Any]:
        """In which the host hands rows over."""
        return self.element.host

    @property
    def device(self) -> Device:
        return self.memory.device

    def encode(self, kind: Kind, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """As `backends.Backend.encode`."""
        return self.encoders[kind].run(inputs)


def place_of(
    manifest: Manifest, memory: Memory, element: Element, row_block: int, *, park_on_host: bool
) -> Place:
    """Where rows of a package's caches lie.

    Raises:
        BackendError: the kernels do not move rows of that width.
    """
    dims = manifest.dims
    width = dims.head_dim * element.words
    if width % 16:
        raise BackendError(
            "expected heads of whole 32 bytes, which the kernels that move rows take, found "
            f"{dims.head_dim} numbers in {manifest.dtype}; use --backend ort-cpu"
        )
    mover = Mover(memory, width)
    staging = Staging(memory) if park_on_host else None
    return Place(memory, mover, element, dims.num_kv_heads, dims.head_dim, row_block, staging)

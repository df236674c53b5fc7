"""What `avl.json` says about engines, and whether a set of them runs on a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from avl_runtime.machine.probe import Machine

EngineBackend = Literal["tensorrt", "tensorrt-rtx"]
ROW_BLOCK = 8  # rows; what products of 16-bit values want a dimension to be a multiple of
OLDEST_PORTABLE = 80  # compute capability of the oldest GPU that engines without targets run on
# The first driver branch for each major version of CUDA.
DRIVER_OF_CUDA = {12: "525", 13: "580"}


@dataclass(frozen=True, slots=True)
class Limits:
    """The shapes that a set of engines takes; the profiles' maxima.

    Attributes:
        decode_rows: new rows of a step in profile 0, whose batch is up to `batch`.
        prompt_rows: new rows of a pass in profile 1, whose batch is 1. A longer prompt takes
            several passes.
        cache_rows: active and, by themselves, parked rows that a cache may have room for.
        batch: sequences decoded together.
    """

    decode_rows: int
    prompt_rows: int
    cache_rows: int
    batch: int


@dataclass(frozen=True, slots=True)
class EngineFile:
    """The engine of one graph; `path` is relative to the package."""

    graph: str
    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class EngineSet:
    """Engines of all graphs of a package, built together.

    Attributes:
        version: of the builder; nothing else loads them.
        targets: compute capabilities, such as 89; none stands for 8.0 and newer.
        cuda: major version of CUDA that the builder came with, None where it is unknown.
        platform: operating system and processor, as linux-x86_64.
        plugins: whether the attention is the plugin, and not its function body.
        row_block: cached rows are inputs [B, Hkv, rows / row_block, row_block, D], the same bytes
            as [B, Hkv, rows, D]; with 1 they are just that.
    """

    backend: EngineBackend
    version: str
    targets: tuple[int, ...]
    cuda: int | None
    platform: str
    plugins: bool
    row_block: int
    limits: Limits
    files: tuple[EngineFile, ...]

    @property
    def folder(self) -> str:
        """Where the set lies in a package."""
        return f"engines/{self.backend}-{self.version}-{target_name(self.targets)}"

    def wants(self) -> str:
        """What a machine must have, in words."""
        parts = [f"{self.backend} {self.version} on {self.platform}", gpu_words(self.targets)]
        if self.cuda is not None:
            parts.append(f"a driver for {cuda_words(self.cuda)}")
        return ", ".join(parts)

    def misfit(self, machine: Machine, installed: str | None) -> str | None:
        """Why the set does not run on `machine`, in words that follow "found"; None: it does.

        Args:
            installed: version of the backend's library, None if there is none.
        """
        if machine.platform != self.platform:
            return machine.platform
        if installed != self.version:
            return f"no {self.backend}" if installed is None else f"{self.backend} {installed}"
        if not machine.gpus:
            return f"no NVIDIA GPU ({machine.trouble or 'none in this machine'})"
        gpu = machine.gpus[0]
        if not self.runs_on(gpu.capability):
            return f"{gpu.name} of compute capability {dotted(gpu.capability)}"
        if self.cuda is not None and machine.cuda is not None and machine.cuda[0] < self.cuda:
            major, minor = machine.cuda
            return f"driver {machine.driver or 'of unknown version'} for CUDA {major}.{minor}"
        return None

    def runs_on(self, capability: int) -> bool:
        """Whether a GPU of this compute capability is among the targets."""
        return capability in self.targets if self.targets else capability >= OLDEST_PORTABLE


def target_name(targets: Sequence[int]) -> str:
    """Targets as part of a folder's name."""
    return "-".join(f"sm{one}" for one in targets) if targets else f"sm{OLDEST_PORTABLE}+"


def gpu_words(targets: Sequence[int]) -> str:
    """Targets for people."""
    if not targets:
        return f"a GPU of compute capability {dotted(OLDEST_PORTABLE)} or newer"
    return f"a GPU of compute capability {' or '.join(map(dotted, targets))}"


def cuda_words(major: int) -> str:
    """A version of CUDA and the drivers that have it, for people."""
    branch = DRIVER_OF_CUDA.get(major)
    return f"CUDA {major}" + (f" ({branch} or newer)" if branch else "")


def dotted(capability: int) -> str:
    """89 as 8.9."""
    return f"{capability // 10}.{capability % 10}"

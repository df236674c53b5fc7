"""What a build's process is told, and what it answers: one JSON object each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

from avl_runtime.package.engine_sets import EngineBackend, Limits
from avl_runtime.package.strict import build

REFUSED = 3  # exit status of a process whose answer is a message for the user


@dataclass(frozen=True, slots=True)
class Job:
    """One graph to look at or, with `out`, to build.

    Attributes:
        package: the package's folder.
        graph: file of the graph in it.
        out: the engine's file; None to parse and check only.
        timing_cache: see `engine.write_engine`.
    """

    package: str
    graph: str
    backend: EngineBackend
    targets: tuple[int, ...]
    plugins: bool
    limits: Limits
    out: str | None
    timing_cache: str | None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        operators: nodes of each operator.
        checked: whether the backend was there to parse the graph.
        layers: layers of each kind in the parsed network.
        unsupported: nodes that the backend cannot take, and why.
        weight_bytes: of the graph's weights in the precision that it computes in.
        int4_bytes: of those that are codes of 4 bits.
        scratch: bytes that an encoder is estimated to take for its largest shapes; 0 for a decoder.
        size, sha256: of the engine; 0 and empty without one.
        seconds: of parsing and building.
        peak_rss_bytes: of the process, weights that are mapped from files included.
    """

    operators: tuple[tuple[str, int], ...]
    checked: bool
    layers: tuple[tuple[str, int], ...]
    unsupported: tuple[str, ...]
    weight_bytes: int
    int4_bytes: int
    scratch: int
    row_block: int
    size: int
    sha256: str
    seconds: float
    peak_rss_bytes: int

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


def read_job(text: str) -> Job:
    """A job from `Job.to_json`."""
    job: Job = build(Job, json.loads(text), "job")
    return job


def read_outcome(text: str) -> Outcome:
    """An outcome from `Outcome.to_json`."""
    outcome: Outcome = build(Outcome, json.loads(text), "outcome")
    return outcome


def counts(found: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """The most frequent first."""
    return tuple(sorted(found.items(), key=lambda item: (-item[1], item[0])))

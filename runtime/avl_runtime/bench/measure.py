"""Start the workers, let them take turns, and sum up."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from avl_runtime.bench.candidates import Candidate
from avl_runtime.bench.idle import read_load, wait_idle
from avl_runtime.bench.schedule import Run, as_run, interleave
from avl_runtime.bench.summary import Loaded, Row, summarize
from avl_runtime.bench.surroundings import machine
from avl_runtime.bench.workers import Worker
from avl_runtime.bench.workload import Workload
from avl_runtime.evaluate.cost import Request
from avl_runtime.package.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure.

    Attributes:
        starts: how often every candidate's process is started; each time there are `warm_up` rounds
            that do not count and `repeats` that do. So what differs from process to process, as
            places in memory, is averaged too.
        idle_wait_s: the limit of waiting before each run, 0 for none.
    """

    threads: int
    starts: int
    repeats: int
    warm_up: int
    idle_wait_s: float


def measure(
    candidates: Sequence[Candidate],
    workload: Workload,
    manifest: Manifest,
    settings: Settings,
    tell: Callable[[str], None],
) -> tuple[dict[str, Any], list[Row]]:
    """Run all candidates; returns what they ran on, as JSON, and a row each.

    Args:
        tell: called with lines on how it goes.

    Raises:
        BenchError: a candidate fails, or the machine is busy.
    """
    runs: dict[str, list[Run]] = {candidate.name: [] for candidate in candidates}
    with TemporaryDirectory(prefix="avl-bench-") as folder:
        place = Path(folder)
        job = _job(workload, manifest, settings.threads, place)
        for _ in range(settings.starts):
            loaded, versions, found = _start(candidates, job, settings, tell)
            for name, some in found.items():
                runs[name] += some
    prompt = len(workload.input_ids)
    steps = workload.new_tokens - 1
    request = Request(prompt, workload.visual, steps, workload.before, workload.media)
    first = runs[candidates[0].name][0]
    rows = [
        summarize(loaded[name], found, manifest.dims, request, workload.batch, first)
        for name, found in runs.items()
    ]
    return _environment(workload, manifest, settings, versions), rows


def _start(
    candidates: Sequence[Candidate],
    job: dict[str, Any],
    settings: Settings,
    tell: Callable[[str], None],
) -> tuple[dict[str, Loaded], dict[str, str], dict[str, list[Run]]]:
    """Start all and let them take turns: what was loaded, of which versions, and what ran."""
    loaded: dict[str, Loaded] = {}
    versions: dict[str, str] = {}
    runners: dict[str, Callable[[], Run]] = {}
    with ExitStack() as stack:
        for candidate in candidates:
            worker = Worker(candidate.name, candidate.command, settings.threads)
            stack.callback(worker.close)
            tell(f"loading {candidate.name}")
            answer = worker.ask({"do": "load", "job": {**job, **candidate.job}})
            versions |= answer["versions"]
            loaded[candidate.name] = Loaded(candidate, answer["weights"], answer["rss_bytes"])
            runners[candidate.name] = partial(_run, worker)
        tell(f"measuring, {settings.warm_up} + {settings.repeats} rounds")
        runs = interleave(
            runners,
            settings.repeats,
            settings.warm_up,
            lambda: wait_idle(settings.idle_wait_s),
        )
    return loaded, versions, runs


def _run(worker: Worker) -> Run:
    before = read_load()
    answer = worker.ask({"do": "run"})
    return as_run(answer, before, read_load(), os.sysconf("SC_CLK_TCK"))


def _job(workload: Workload, manifest: Manifest, threads: int, place: Path) -> dict[str, Any]:
    """What all workers are told; pictures are files in `place`, and peers convert models there."""
    files = []
    for number, image in enumerate(workload.images):
        files.append(str(place / f"{number}.png"))
        image.save(files[-1])
    return {
        "images": files,
        "input_ids": list(workload.input_ids),
        "visual_tokens": list(manifest.visual_tokens),
        "new_tokens": workload.new_tokens,
        "batch": workload.batch,
        "threads": threads,
        "folder": str(place / "converted"),
    }


def _environment(
    workload: Workload, manifest: Manifest, settings: Settings, versions: dict[str, str]
) -> dict[str, Any]:
    return {
        "model": manifest.model,
        "family": manifest.family,
        "weight_bytes": sum(shard.size for shard in manifest.weights.shards),
        "dims": dataclasses.asdict(manifest.dims),
        "workload": {
            "visual_tokens": workload.visual,
            "text_tokens": len(workload.input_ids) - workload.visual,
            "new_tokens": workload.new_tokens,
            "batch": workload.batch,
            "pictures": [list(image.size) for image in workload.images],
        },
        "threads": settings.threads,
        "starts": settings.starts,
        "repeats": settings.repeats,
        "warm_up": settings.warm_up,
        "machine": machine(),
        "versions": {"avl": manifest.producer.rpartition(" ")[2], **versions},
        "date": time.strftime("%Y-%m-%d"),
    }

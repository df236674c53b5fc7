"""Requests of a file, answered by a pool of workers in a Ray cluster.

Ray Data hands parts of the file's index to actors, each with a model of its own, which read the
lines themselves. An actor that dies is begun anew, and gets its part again; answers come here with
a whole part, so that each is written once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import quoted, shown
from avl_runtime.execute.protocol import GPUS
from avl_runtime.machine.installation import need
from avl_runtime.serve.batch.answers import Row
from avl_runtime.serve.batch.copies import Source, copied
from avl_runtime.serve.batch.job import Job, together
from avl_runtime.serve.batch.questions import TOO_LONG, LineFile, Questions
from avl_runtime.serve.batch.run import Asker, BatchError, Take, run

PART: Final = 8  # times as many requests as are answered at one time
OBJECTS: Final = 256 << 20  # bytes of Ray's store on this machine
REACHED: Final = 10.0  # seconds in which a cluster's head takes a connection
WAY_OUT: Final = "name HOST:PORT of its head, auto on a machine of it, or none to begin one here"
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Workers of a Ray cluster.

    Attributes:
        address: as Ray takes it; `local` begins one on this machine.
        workers: how many; None for as many as there are processors for.
        copy_to: where they put a copy of the package; None: it lies under its path for all.
    """

    address: str
    workers: int | None
    copy_to: Path | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of the package, on a worker's machine.

    Attributes:
        folder: where copies lie.
        source: the actor that has the package, a `Source`.
    """

    folder: Path
    source: Any

    def made(self) -> Path:
        """The folder of the copied package.

        Raises:
            AvlError: it cannot be copied.
        """
        import ray

        listed = ray.get(self.source.listed.remote())
        return copied(self.folder, listed, lambda *piece: ray.get(self.source.piece.remote(*piece)))


class Worker:
    """An actor: a loaded package, asked about parts of a file."""

    def __init__(self, job: Job, source: Path, state: tuple[int, int], copy: Copy | None) -> None:
        """
        Args:
            source: the questions, as they lie on this machine.
            state: of the file, as it has to be.
            copy: of the package, to be asked in its place.
        """
        if copy is not None:
            job = dataclasses.replace(job, package=copy.made())
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._ask = self._loop.run_until_complete(
            self._stack.enter_async_context(job.asking()),
        )
        self._file, self._reader = LineFile(source, state), job.reader(source)
        self._at_once = together(job.limits.running)

    def __call__(self, batch: Columns) -> Columns:
        """Answer a part.

        Args:
            batch: `data` is [requests, 4], as `Questions.spans` has it.
        """
        part = _Part(self._file, batch["data"])
        rows: list[tuple[int, Row]] = []
        asker = Asker(part, self._reader, self._ask)
        work = run(range(len(batch["data"])), asker, lambda *row: rows.append(row), self._at_once)
        self._loop.run_until_complete(work)
        return {
            "place": np.array([part.spans[at, 0] for at, _ in rows], np.int64),
            "line": np.array([row.line for _, row in rows], np.object_),
            "failed": np.array([row.failed for _, row in rows], bool),
            "tokens": np.array([row.tokens for _, row in rows], np.int64),
        }


class _Part:
    """Some lines of a file."""

    def __init__(self, file: LineFile, spans: NDArray[np.int64]) -> None:
        self._file, self.spans = file, spans

    def line(self, place: int) -> bytes | None:
        _, start, length, _ = self.spans[place].tolist()
        return None if length == TOO_LONG else self._file.read(start, length)

    def number(self, place: int) -> int:
        return int(self.spans[place, 3])


def check_reached(address: str) -> None:
    """Refuse a head that takes no connection, which Ray would wait minutes for.

    Args:
        address: HOST:PORT, or `auto` or `local`, which name no head.

    Raises:
        BatchError: nothing listens there, or this is no such address.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    numbered = port.isdecimal() and len(port) <= 5 and 0 < int(port) < 1 << 16
    if not host or not numbered:
        raise BatchError(f"--ray: expected a cluster's address, found {quoted(address)}; {WAY_OUT}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
    except (OSError, UnicodeError) as error:
        raise BatchError(
            f"--ray {shown(address)}: expected a cluster's head, found: {shown(error)}; {WAY_OUT}"
        ) from None


def answered(
    job: Job, questions: Questions, left: NDArray[np.int64], take: Take, cluster: Cluster
) -> None:
    """Answer requests.

    Args:
        left: places of requests, in order.
        take: is given each answer.

    Raises:
        AvlError: the cluster cannot be had, the file or the package cannot be shared, or a worker
            cannot answer.
    """
    if cluster.copy_to is not None:
        Source(job.package)  # what is wrong with it is told here, not in an actor's traceback
    need("ray", what_for="--ray")
    if not questions.path.is_file():
        raise BatchError(
            f"--ray: expected a file that all workers can read, found {shown(questions.path)}; "
            "write the questions to one"
        )
    if cluster.address.startswith("ray://"):
        raise BatchError(
            "--ray: expected a cluster that this machine is part of, found the address of a "
            "client; run it there, as a job, with --ray auto"
        )
    check_reached(cluster.address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    local = cluster.address == "local"
    sized = {"object_store_memory": OBJECTS, "include_dashboard": False} if local else {}
    try:
        ray.init(address=cluster.address, logging_level=logging.ERROR, **sized)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BatchError(
            f"--ray {shown(cluster.address)}: expected a cluster, found: {shown(error)}; {WAY_OUT}"
        ) from None
    try:
        for place, row in _rows(job, questions, left, cluster):
            take(place, row)
    except ray.exceptions.RayError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise BatchError(
            f"expected workers that answer, found: {shown(lines[-1] if lines else error, 400)}; "
            "go on with --resume"
        ) from error
    finally:
        ray.shutdown()


def _rows(job: Job, questions: Questions, left: NDArray[np.int64], cluster: Cluster) -> Any:
    """Answers with their places, as they come."""
    import ray

    threads, workers = _shared_out(job.loading["threads"], cluster.workers)
    here = dataclasses.replace(
        job,
        package=job.package.resolve(),
        images=None if job.images is None else job.images.resolve(),
        loading={**job.loading, "threads": threads},
    )
    copy = None if cluster.copy_to is None else Copy(cluster.copy_to, _source(here.package))
    most = max(1, min(PART * job.limits.running, len(left) // (2 * workers)))
    spans = questions.spans(left)
    parts = [spans[at : at + most] for at in range(0, len(spans), most)]
    ray.data.DataContext.get_current().enable_progress_bars = False
    found = ray.data.from_numpy(parts).map_batches(
        Worker,
        fn_constructor_args=(here, questions.path.resolve(), questions.source.state, copy),
        compute=ray.data.ActorPoolStrategy(size=workers),
        batch_size=None,
        batch_format="numpy",
        num_cpus=threads,
        num_gpus=1 if job.loading["backend"] in GPUS else 0,
    )
    for batch in found.iter_batches(batch_size=None, batch_format="numpy"):
        columns = (batch[name].tolist() for name in ("place", "line", "failed", "tokens"))
        for place, line, failed, tokens in zip(*columns, strict=True):
            yield place, Row(line, failed, tokens)


def _source(package: Path) -> Any:
    """An actor on this machine that hands out the package's files."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    made = ray.remote(num_cpus=0, scheduling_strategy=here)(Source)
    return made.remote(package)


def _shared_out(threads: int | None, workers: int | None) -> tuple[int, int]:
    """Threads of a worker, and how many workers there are.

    On each machine a processor is left to reading and to Ray itself, where it has two or more.

    Args:
        threads, workers: as they were asked for.
    """
    import ray

    found = [int(one["Resources"].get("CPU", 0)) for one in ray.nodes() if one["Alive"]]
    free = [max(1, count - 1) for count in found if count]
    taken = threads or min(free, default=1)
    return taken, workers or max(1, sum(count // taken for count in free))

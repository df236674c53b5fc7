"""The process that builds one engine: reads a job on stdin, writes its outcome on stdout.

A builder is a large library that cannot be interrupted from Python, keeps memory after a build, may
be killed for want of it, and has been seen to abort. In a process of its own it can do all of that
without taking the rest along.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from avl_plugins import tensorrt
from avl_plugins.errors import AvlError
from avl_plugins.graph_io import PIXELS
from avl_runtime.engines.encoder_size import encoder_size
from avl_runtime.engines.encoders import encoder_ranges
from avl_runtime.engines.engine import write_engine
from avl_runtime.engines.graphs import Prepared, prepare
from avl_runtime.engines.jobs import REFUSED, Job, Outcome, counts, read_job
from avl_runtime.engines.lint import lint
from avl_runtime.engines.monitor import make_monitor
from avl_runtime.engines.network import listing, load_toolkit, missing, parse
from avl_runtime.engines.options import BuildError
from avl_runtime.engines.profiles import Profile, encoder_profile, segment_profiles
from avl_runtime.machine.memory import peak_rss_bytes
from avl_runtime.package.package import Package, load_package


def main() -> int:
    """Carry out the job on stdin; returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a builder does not let Python's handler run
    job = read_job(sys.stdin.read())
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the libraries print is no answer
    try:
        answer, status = run(job).to_json(), 0
    except AvlError as error:
        answer, status = str(error), REFUSED
    except OSError as error:
        answer = f"{job.out}: expected to write the engine, found {error.strerror or error}"
        status = REFUSED
    with answers:
        answers.write(answer)
    return status


def run(job: Job) -> Outcome:
    """Parse, check and, if asked to, build a graph.

    Raises:
        AvlError: the graph cannot be built.
        OSError: the engine cannot be written.
    """
    begun = time.perf_counter()
    package = load_package(job.package)
    prepared = prepare(package.read(job.graph), package.manifest.dims, job.plugins)
    profiles = profiles_of(package, job, prepared)
    layers: Counter[str] = Counter()
    unsupported: Sequence[str] = ()
    size, sha256 = 0, ""
    checked = job.out is not None or missing(job.backend) is None
    if checked:
        toolkit = load_toolkit(job.backend)
        if job.plugins:
            tensorrt.register(job.targets[0] if job.targets else None)
        near = str(package.weights_folder / job.graph)
        parsed, unsupported = parse(toolkit, prepared.model, near)
        found = listing(toolkit, parsed.network)
        layers = Counter(layer.kind for layer in found.layers)
        if not unsupported:
            lint(job.graph, found, list(prepared.inputs), prepared.attentions, prepared.lengths)
        if job.out is not None:
            if unsupported:
                raise BuildError(
                    f"{job.graph}: expected nodes that {job.backend} supports, found "
                    f"{'; '.join(unsupported)}"
                )
            written = write_engine(
                toolkit,
                parsed,
                profiles,
                job.targets if job.backend == "tensorrt-rtx" else (),
                make_monitor(toolkit.trt, job.graph),
                Path(job.timing_cache) if job.timing_cache is not None else None,
                Path(job.out),
            )
            size, sha256 = written.size, written.sha256
    return Outcome(
        operators=counts(prepared.operators),
        checked=checked,
        layers=counts(layers),
        unsupported=tuple(unsupported),
        weight_bytes=prepared.weight_bytes,
        int4_bytes=prepared.int4_bytes,
        scratch=_encoder_scratch(package, prepared, profiles),
        row_block=prepared.row_block,
        size=size,
        sha256=sha256,
        seconds=time.perf_counter() - begun,
        peak_rss_bytes=peak_rss_bytes(),
    )


def profiles_of(package: Package, job: Job, prepared: Prepared) -> Sequence[Profile]:
    """The profiles of a graph, in the order that the runtime counts them."""
    manifest = package.manifest
    if any(segment.file == job.graph for segment in manifest.segments):
        heads = manifest.dims.num_kv_heads
        return segment_profiles(prepared.inputs, job.limits, prepared.row_block, heads)
    ranges = encoder_ranges(manifest, job.graph, job.limits.cache_rows)
    return [encoder_profile(prepared.inputs, ranges, job.graph)]


def _encoder_scratch(package: Package, prepared: Prepared, profiles: Sequence[Profile]) -> int:
    size = encoder_size(prepared.model.graph)
    if size is None:
        return 0
    _, _, largest = profiles[0].shapes[PIXELS]
    return size.scratch(largest, 4 if package.manifest.dtype == "fp32" else 2)


if __name__ == "__main__":
    sys.exit(main())

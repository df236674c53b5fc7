"""How avl-bench and its workers talk: one JSON object a line, both ways.

    {"do": "load", "job": {...}}  ->  what `load` told, and "rss_bytes"
    {"do": "run"}                 ->  what the run found, and "cpu_s", "wall_s", "peak_rss_bytes"

A failure is answered with {"error": sentence}. The end of stdin ends a worker.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from avl_runtime.machine.memory import peak_rss_bytes, rss_bytes

Job = Mapping[str, Any]
Run = Callable[[], dict[str, Any]]
Load = Callable[[Job], tuple[Run, dict[str, Any]]]


def serve(load: Load) -> None:
    """Answer requests on stdin until it ends.

    Args:
        load: makes everything ready for a job; returns what runs it once, and facts to tell.
    """
    # What libraries print must not get among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    run: Run | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                run, answer = load(request["job"])
                answer["rss_bytes"] = rss_bytes()
            else:
                answer = _timed(run)
        # Any library's any error is told to who asked.
        except Exception as error:
            known = any(base.__name__ == "AvlError" for base in type(error).__mro__)
            name = "" if known else f"{type(error).__name__}: "
            answer = {"error": name + " ".join(str(error).split())[:400]}
        print(json.dumps(answer), file=answers, flush=True)


def _timed(run: Run | None) -> dict[str, Any]:
    if run is None:
        raise RuntimeError("expected a job before the first run")
    begun, cpu = time.perf_counter(), time.process_time()
    found = run()
    found["cpu_s"] = time.process_time() - cpu
    found["wall_s"] = time.perf_counter() - begun
    found["peak_rss_bytes"] = peak_rss_bytes()
    return found

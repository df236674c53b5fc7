#!/usr/bin/env python
"""Eight requests to avl-serve at once, and one by one; the same in llama.cpp; first tokens.

    ./scripts/peers.sh build/peers
    .venv/bin/python scripts/serve_speed.py --peer-python build/peers/bin/python

The record is benchmarks/serve-speed.json (--json).

A package of `half-billion` in INT4 behind avl-serve: prompts of a picture and text, 640 tokens, 128
new ones each, by HTTP. Cached rows have 16 bits (--kv), as llama.cpp's have by default. In every
round the requests are sent at once and then one by one, and so are prompts of as many tokens to
llama.cpp with the decoder's weights in Q4_0: at once in as many parallel sequences, as in the slots
of its own server, and one by one, as the server of llama-cpp-python answers them. llama.cpp reads
text alone, has no HTTP to do, and is handed tokens. Every picture and text is new, so that nothing
of a prompt is known.

Then a short prompt is sent while a long one is read, at several moments, and alone. `waits_chunks`
is how much later its first token comes, in times of 256 tokens of the long one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from avl_plugins.errors import AvlError
from avl_runtime.bench.boot import foreign_command
from avl_runtime.bench.idle import wait_idle
from avl_runtime.bench.surroundings import machine
from avl_runtime.bench.workers import Worker
from avl_runtime.execute.protocol import KV
from bench_all import ROOT, Record, checkpoint, package
from ratios import ratios
from serve_client import MODEL, Client
from started import served

CHUNK: Final = 256  # tokens that are read at one time
OPTIONS: Final = ("--backend", "ort-cpu", "--prefix-cache", "off", "--quiet")  # of avl-serve
LLAMA: Final = "avl_runtime.bench.peers.llama_peer"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is asked.

    Attributes:
        prompt, new: tokens of each of the requests, a picture's included.
        side: of the picture, in pixels.
        long, short: tokens of the prompts of which one is sent while the other is read.
    """

    requests: int = 8
    prompt: int = 640
    new: int = 128
    side: int = 336
    long: int = 3000
    short: int = 64


def spent(work: Callable[[], object]) -> float:
    """Seconds that work takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def of_server(client: Client, sizes: Sizes) -> dict[str, float]:
    """Seconds of the requests at once, and one after the other."""
    bodies = [client.body(sizes.prompt, sizes.side) for _ in range(2 * sizes.requests)]

    def ask(body: Mapping[str, Any]) -> None:
        client.whole(body, sizes.new)

    with ThreadPoolExecutor(sizes.requests) as pool:
        together = spent(lambda: list(pool.map(ask, bodies[: sizes.requests])))
    alone = spent(lambda: list(map(ask, bodies[sizes.requests :])))
    return {"together_s": together, "one_by_one_s": alone}


def of_llama(workers: Sequence[Worker], sizes: Sizes) -> dict[str, float]:
    """Seconds of llama.cpp for as many tokens.

    Args:
        workers: of all sequences at once, and of one.
    """
    slots, one = workers
    run = {"do": "run"}
    found = [one.ask(run)["wall_s"] for _ in range(sizes.requests)]
    return {"together_s": slots.ask(run)["wall_s"], "one_by_one_s": sum(found)}


def first_tokens(client: Client, sizes: Sizes, moments: int) -> dict[str, Any]:
    """How long a short prompt's first token takes, alone and while a long prompt is read."""
    alone = [client.first(client.body(sizes.short)) for _ in range(moments)]
    whole = statistics.median(client.first(client.body(sizes.long)) for _ in range(2))
    meanwhile = []
    for number in range(moments):
        short, long = client.body(sizes.short), client.body(sizes.long)
        reading = threading.Thread(target=client.first, args=(long,))
        reading.start()
        time.sleep(whole * (0.1 + 0.7 * number / moments))
        meanwhile.append(client.first(short))
        reading.join()
    chunk = whole * CHUNK / sizes.long
    usual = statistics.median(alone)
    waits = [(one - usual) / chunk for one in meanwhile]
    return {
        "long_s": round(whole, 4),
        "chunk_s": round(chunk, 4),
        "alone_s": round(usual, 4),
        "meanwhile_s": [round(one, 4) for one in meanwhile],
        "waits_chunks": {
            "median": round(statistics.median(waits), 3),
            "most": round(max(waits), 3),
        },
    }


def llama_job(sizes: Sizes, source: Path, folder: Path, threads: int, batch: int) -> dict[str, Any]:
    """What llama.cpp's worker is told: text of as many tokens."""
    draw = random.Random(0)
    return {
        "input_ids": [draw.randrange(100, 900) for _ in range(sizes.prompt)],
        "visual_tokens": [],
        "new_tokens": sizes.new,
        "batch": batch,
        "threads": threads,
        "folder": str(folder / f"{source.name}-converted"),
        "checkpoint": str(source),
        "weights": "q4_0",
        "flash": False,  # with it a step on a CPU takes more than twice as long
    }


def figures(rounds: Sequence[Mapping[str, Mapping[str, float]]], sizes: Sizes) -> dict[str, Any]:
    """Ratios of rounds, and tokens a second."""
    tokens = sizes.requests * sizes.new
    found: dict[str, Any] = {"rounds": list(rounds), "new_tokens_a_second": {}}
    for name in rounds[0]:
        found["new_tokens_a_second"][name] = {
            way.removesuffix("_s"): round(
                tokens / statistics.median(one[name][way] for one in rounds), 2
            )
            for way in ("together_s", "one_by_one_s")
        }
    against = {"one_by_one": ("avl", "one_by_one_s")}
    if "llama.cpp" in rounds[0]:
        against["llama.cpp_slots"] = ("llama.cpp", "together_s")
        against["llama.cpp_one_by_one"] = ("llama.cpp", "one_by_one_s")
    found["times_as_fast_as"] = {
        name: ratios([(one["avl"]["together_s"], one[which][way]) for one in rounds])
        for name, (which, way) in against.items()
    }
    return found


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What was found, for people."""
    sizes, first = report["sizes"], report["first_tokens"]
    lines = [
        f"{sizes['requests']} requests at once are {ratio['median']:.2f} times as fast as "
        f"{name.replace('_', ' ')} (quartiles {ratio['quartile_1']:.2f}-{ratio['quartile_3']:.2f})"
        for name, ratio in report["times_as_fast_as"].items()
    ]
    waits = first["waits_chunks"]
    return [
        *lines,
        f"a prompt of {sizes['short']} tokens while one of {sizes['long']} is read: its first "
        f"token waits {waits['median']:.2f} chunks' time (at most {waits['most']:.2f}) of "
        f"{first['chunk_s']:.3f} s",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parsed = parser().parse_args(arguments)
    parsed.folder.mkdir(parents=True, exist_ok=True)
    changes = {name: getattr(parsed, name) for name in Sizes.__slots__}
    sizes = Sizes(**{name: value for name, value in changes.items() if value is not None})
    record = Record(parsed.preset, (), (), stored="fp16", kind="int4")
    try:
        report = measure(parsed, sizes, record)
    except AvlError as error:
        sys.exit(f"serve_speed: {error}")
    print("\n".join(sentences(report)))
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(parsed: argparse.Namespace, sizes: Sizes, record: Record) -> dict[str, Any]:
    """All rounds, after one that does not count.

    Raises:
        AvlError: the machine is busy, or llama.cpp cannot be run.
    """
    folder, threads = parsed.folder, parsed.threads
    made = package(folder, record, record.kind)
    rounds: list[dict[str, dict[str, float]]] = []
    with ExitStack() as stack:
        options = ["--threads", str(threads), "--running", str(sizes.requests), *OPTIONS]
        options += ["--kv", parsed.kv]
        client = Client(stack.enter_context(served([f"{MODEL}={made}"], options)).port)
        workers, versions = [], {}
        for batch in (sizes.requests, 1) if parsed.peer_python else ():
            command = foreign_command(parsed.peer_python, LLAMA)
            worker = stack.enter_context(Worker("llama.cpp", command, threads))
            source = checkpoint(folder, record.preset, record.stored)
            job = llama_job(sizes, source, folder, threads, batch)
            versions = worker.ask({"do": "load", "job": job})["versions"]
            workers.append(worker)
        for number in range(1 + parsed.repeats):
            print(f"serve_speed: round {number}", file=sys.stderr, flush=True)
            wait_idle(parsed.idle_wait)
            one = {"avl": of_server(client, sizes)}
            if workers:
                wait_idle(parsed.idle_wait)
                one["llama.cpp"] = of_llama(workers, sizes)
            rounds.append(one)
        wait_idle(parsed.idle_wait)
        first = first_tokens(client, sizes, parsed.moments)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "threads": threads,
        "idle_wait_s": parsed.idle_wait,
        "preset": parsed.preset,
        "kv": parsed.kv,
        "sizes": asdict(sizes),
        "versions": versions,
        **figures(rounds[1:], sizes),
        "first_tokens": first,
    }


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = found.add_argument
    add("--preset", default="half-billion", help="of make_random.py (default: half-billion)")
    add("--folder", type=Path, default=ROOT / "build/bench", help="where packages are kept")
    add("--peer-python", help="of peers.sh; without it llama.cpp is left out")
    for name in Sizes.__slots__:
        add(f"--{name}", type=int, help=f"default: {getattr(Sizes(), name)}")
    add("--kv", default="fp16", choices=KV, help="how avl-serve keeps rows (default: fp16)")
    add("--moments", type=int, default=8, help="at which the short prompt comes (default: 8)")
    add("--threads", type=int, default=os.cpu_count(), help="default: all processors")
    add("--repeats", type=int, default=3, help="rounds that count (default: 3)")
    add(
        "--idle-wait",
        type=float,
        default=60,
        help="seconds to wait for an idle machine, 0 to measure on a busy one (default: 60)",
    )
    add("--json", type=Path)
    return found


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Speed beside another checkout, in one run: prefill, time a token, and what overhead.py measures.

    .venv/bin/python scripts/side_by_side.py ../old . --json benchmarks/side-by-side.json

Checkouts as for greedy_tokens.py, the older one first. Each exports the preset's random-weight
checkpoint with its own code, and has a process that stays loaded while the other works. In every
round both read the same prompt, one after the other, and then decode in turns of a few tokens, so
that what else happens on the machine meets both alike. Ratios are new over old: of prefill one a
round, of decoding one for each pair of turns (both the same tokens), of overhead.py (each
checkout's own, one after the other) one a start. Ends with 1 if a median is above --at-most.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError
from avl_runtime.bench.idle import QUIET, read_load, wait_idle
from avl_runtime.bench.surroundings import machine
from avl_runtime.bench.workers import Worker
from bench_all import ROOT, checkpoint
from make_random import PRESETS
from ratios import compared, of_overheads, of_peaks, ratios, sentence
from trees import SCRIPTS, Tree

AVL = "avl:keep=0.5,core=0.3,refresh=3"
NAMES = ("old", "new")
KINDS = {  # of packages, as every checkout's exporter is asked
    "fp32": ("--dtype", "fp32"),
    "int4": ("--quantize", "int4", "--quantize-also", "lm_head"),
}
PAUSE_S = 0.05  # between turns: threads of the one that has run spin for a while
OUTSIDE = "milliseconds_per_token_outside_sessions"  # what overhead.py calls its figures


@dataclass(slots=True)
class Times:
    """Of one policy: a pair (old, new) of seconds for each round or turn, and tokens of each."""

    prefill: list[tuple[float, float]] = field(default_factory=list)
    turns: list[tuple[float, float]] = field(default_factory=list)
    token: list[tuple[float, float]] = field(default_factory=list)
    disturbed: int = 0


class Pair:
    """Both checkouts' workers, which take turns.

    Attributes:
        cpu_s: that both have used.
        peak_rss_bytes: of the older one and of the newer one.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._turn = 0
        self.cpu_s = 0.0
        self.peak_rss_bytes = (0, 0)

    def both(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Ask one after the other, another one first every time; answers as (old, new).

        Raises:
            BenchError: one of them fails.
        """
        self._turn += 1
        order = (0, 1) if self._turn % 2 else (1, 0)
        found: dict[int, dict[str, Any]] = {}
        for number in order:
            time.sleep(PAUSE_S)
            found[number] = self._workers[number].ask(request)
            self.cpu_s += found[number]["cpu_s"]
        self.peak_rss_bytes = (found[0]["peak_rss_bytes"], found[1]["peak_rss_bytes"])
        return found[0], found[1]


def one_round(pair: Pair, policy: str, block: int, times: Times) -> None:
    """Read the prompt and decode to the end, in turns.

    Raises:
        SystemExit: replies have different lengths.
    """
    load, cpu = read_load(), pair.cpu_s
    old, new = pair.both({"do": "begin", "policy": policy})
    times.prefill.append((old["seconds"], new["seconds"]))
    turns, pieces = [], 0
    while True:
        old, new = pair.both({"do": "steps", "count": block})
        if old["pieces"] != new["pieces"]:
            sys.exit(
                f"{policy}: expected as many pieces of text from both, found {old['pieces']} and "
                f"{new['pieces']}; compare their tokens with scripts/greedy_tokens.py"
            )
        if not new["pieces"]:
            break
        pieces += new["pieces"]
        turns.append((old["seconds"], new["seconds"]))
    times.turns += turns
    old_s, new_s = (sum(one[side] for one in turns) / max(1, pieces) for side in (0, 1))
    times.token.append((old_s, new_s))
    after = read_load()
    if load is not None and after is not None and after.total > load.total:
        own = (pair.cpu_s - cpu) * os.sysconf("SC_CLK_TCK") / (after.total - load.total)
        times.disturbed += load.share_until(after) - own > QUIET


def decode(
    pairs: Callable[[ExitStack], Pair], parsed: argparse.Namespace, tell: Callable[[str], None]
) -> tuple[dict[str, Times], list[tuple[int, int]]]:
    """Times of every policy, over all starts and rounds, and both peaks of memory of each start.

    Args:
        pairs: starts both workers.

    Raises:
        AvlError: the machine is busy, or a worker fails.
        SystemExit: replies differ.
    """
    times = {policy: Times() for policy in parsed.policies}
    peaks = []
    for start in range(parsed.starts):
        with ExitStack() as stack:
            pair = pairs(stack)
            for policy in parsed.policies:
                replies = [one["tokens"] for one in pair.both({"do": "whole", "policy": policy})]
                check_replies(policy, replies, parsed.new_tokens, alike=parsed.kv is None)
            for number in range(parsed.repeats):
                tell(f"start {start + 1}, round {number + 1}")
                for policy in parsed.policies:
                    wait_idle(parsed.idle_wait)
                    one_round(pair, policy, parsed.block, times[policy])
            peaks.append(pair.peak_rss_bytes)
    return times, peaks


def check_replies(
    policy: str, replies: Sequence[Sequence[int]], new_tokens: int, *, alike: bool = True
) -> None:
    """Refuse what would not be a comparison.

    Args:
        alike: whether tokens must be the same.

    Raises:
        SystemExit: replies differ, or are shorter than asked for.
    """
    if alike and replies[0] != replies[1]:
        sys.exit(
            f"{policy}: expected the same tokens from both, found others; compare them with "
            "scripts/greedy_tokens.py"
        )
    shortest = min(map(len, replies))
    if shortest != new_tokens:
        sys.exit(
            f"{policy}: expected {new_tokens} new tokens, found a reply that ends after "
            f"{shortest}; ask for fewer with --new-tokens"
        )


def overheads(trees: Sequence[Tree], parsed: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """What each checkout's own overhead.py finds, as (old, new), a start each."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for start in range(parsed.starts):
            order = (0, 1) if start % 2 == 0 else (1, 0)
            both: list[dict[str, Any]] = [{}, {}]
            for number in order:
                wait_idle(parsed.idle_wait)
                out = Path(folder, f"{number}.json")
                arguments = ["--tokens", str(parsed.overhead_tokens), "--json", str(out)]
                trees[number].run(trees[number].root / "scripts/overhead.py", *arguments)
                both[number] = json.loads(out.read_text(encoding="utf-8"))[OUTSIDE]
            found.append(both)
    return found


def figures(times: Times) -> dict[str, Any]:
    """Of one policy, as the JSON has them."""
    token = compared(times.token) | {"ratio": ratios(times.turns)}
    return {"prefill": compared(times.prefill), "token": token, "disturbed": times.disturbed}


def lines(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every comparison with its name."""
    found = []
    for policy, parts in report["policies"].items():
        found += [(f"{policy}, {part}", parts[part]) for part in ("prefill", "token")]
    overhead = report["overhead"].items()
    return found + [(f"{policy}, outside the sessions", one) for policy, one in overhead]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 1 if something got slower than is allowed."""
    parsed = parser().parse_args(arguments)
    trees = [Tree.of(one) for one in (parsed.old, parsed.new)]

    def tell(line: str) -> None:
        print(f"side_by_side: {line}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        source = parsed.checkpoint
        if source is None:
            parsed.folder.mkdir(parents=True, exist_ok=True)
            source = checkpoint(parsed.folder, parsed.preset, parsed.stored)
        packages = [
            tree.export(source, Path(folder, f"{name}.avl"), *KINDS[parsed.kind])
            for name, tree in zip(NAMES, trees, strict=True)
        ]
        facts: dict[str, Any] = {}

        def start(stack: ExitStack) -> Pair:
            workers = []
            for name, tree in zip(NAMES, trees, strict=True):
                command = tree.script(SCRIPTS / "speed_worker.py")
                worker = Worker(f"{name} ({tree.commit})", command, parsed.threads)
                stack.callback(worker.close)
                workers.append(worker)
            kept = (None, parsed.kv)
            for worker, package, kv in zip(workers, packages, kept, strict=True):
                told = job(parsed, package) | ({} if kv is None else {"kv": kv})
                facts.update(worker.ask({"do": "load", "job": told}))
            return Pair(workers)

        try:
            times, peaks = decode(start, parsed, tell)
            outside = of_overheads(overheads(trees, parsed)) if parsed.overhead_tokens else {}
        except AvlError as error:
            sys.exit(f"side_by_side: {error}")
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "commits": dict(zip(NAMES, [tree.commit for tree in trees], strict=True)),
        "machine": machine(),
        "checkpoint": source.name,
        "weights": parsed.kind,
        "new_kv": parsed.kv,
        "workload": {
            "visual_tokens": facts["visual_tokens"],
            "text_tokens": parsed.text_tokens,
            "new_tokens": parsed.new_tokens,
        },
        "threads": parsed.threads,
        "starts": parsed.starts,
        "repeats": parsed.repeats,
        "turn_tokens": parsed.block,
        "idle_wait_s": parsed.idle_wait,
        "policies": {policy: figures(one) for policy, one in times.items()},
        "peak_rss": of_peaks(peaks),
        "overhead": outside,
    }
    for name, one in lines(report):
        print(sentence(name, one))
    old, new = (report["peak_rss"][f"{name}_bytes"] / 2**20 for name in NAMES)
    print(f"peak memory: {old:.0f} MiB, now {new:.0f} MiB, ratio {report['peak_rss']['ratio']:.3f}")
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    slow = [name for name, one in lines(report) if one["ratio"]["median"] > parsed.at_most]
    if slow:
        print(f"above {parsed.at_most:g}: {'; '.join(slow)}")
    return 1 if slow else 0


def job(parsed: argparse.Namespace, package: Path) -> dict[str, Any]:
    """What a worker is told; see speed_worker.py."""
    return {
        "package": str(package),
        "threads": parsed.threads,
        "pictures": parsed.pictures,
        "side": parsed.side,
        "text_tokens": parsed.text_tokens,
        "new_tokens": parsed.new_tokens,
    }


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = found.add_argument
    add("old", help="a checkout with .venv, or its Python")
    add("new", help="another, or this one")
    add("--preset", choices=PRESETS, default="S1", help="default: S1")
    add("--stored", choices=("fp32", "fp16"), default="fp32", help="the preset's weights")
    add("--checkpoint", type=Path, help="in place of a preset: a folder that make_random.py wrote")
    add("--kind", choices=KINDS, default="fp32", help="of both packages (default: fp32)")
    add("--kv", help="how the newer one keeps cached rows, as int8; tokens may differ then")
    add("--folder", type=Path, default=ROOT / "build/bench", help="where presets are kept")
    add("--policies", nargs="+", default=["dense", AVL])
    add("--pictures", type=int, default=5, help="of noise (default: 5, at S1 2880 tokens)")
    add("--side", type=int, default=336, help="pixels of each (default: 336)")
    add("--text-tokens", type=int, default=128, help="the template's included (default: 128)")
    add("--new-tokens", type=int, default=128, help="default: 128")
    add("--block", type=int, default=8, help="tokens of a turn (default: 8)")
    add("--threads", type=int, default=os.cpu_count(), help="default: all processors")
    add("--starts", type=int, default=3, help="of both processes (default: 3)")
    add("--repeats", type=int, default=3, help="rounds of a start (default: 3)")
    add("--overhead-tokens", type=int, default=100, help="of overhead.py; 0 leaves it out")
    add(
        "--idle-wait",
        type=float,
        default=60,
        help="seconds to wait for an idle machine, 0 to measure on a busy one (default: 60)",
    )
    add("--at-most", type=float, default=float("inf"), help="end with 1 above this ratio")
    add("--json", type=Path)
    return found


if __name__ == "__main__":
    sys.exit(main())

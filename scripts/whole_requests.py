#!/usr/bin/env python
"""Whole requests with a picture, beside OpenVINO's VLMPipeline: to the first token, and to all.

    ./scripts/peers.sh build/peers
    .venv/bin/python scripts/whole_requests.py --peer-python build/peers/bin/python

Counted from the opened picture and the question's text: resizing, tokens, the vision tower, the
prompt and the first token; then the other ones, greedily, up to a fixed number. `tiny` asks
avl-tiny about held-out pages, in fp32 and, where the processor has AMX, in bf16. `s1` is a LLaVA of
S1's decoder with a CLIP tower of 24 layers and 576 image tokens, with INT4 weights: avl's in all
linears, OpenVINO's in those of the decoder's layers. There the tower, the embedding and the output
matrix are in 8 bits. Rows of the cache are in 8 bits in both. OpenVINO runs by its own precision,
which is bf16 where the processor computes in that, and in f32; its cache of prefixes is off. In
every round all are asked about the same pictures, which are new to them. avl-tiny's texts in f32
must be avl's. Writes benchmarks/whole-requests.json, a case each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from avl_plugins.cpu.host import host
from avl_plugins.errors import AvlError
from avl_runtime.bench.against import interpreter
from avl_runtime.bench.boot import foreign_command
from avl_runtime.bench.idle import read_load, wait_idle
from avl_runtime.bench.schedule import orders, others_share
from avl_runtime.bench.summary import DISTURBED, Spread
from avl_runtime.bench.surroundings import machine
from avl_runtime.bench.workers import Worker
from avl_runtime.bench.workload import noise
from avl_runtime.cli.lists import some_name
from avl_runtime.tasks import samples
from bench_all import ROOT, at_least_one, checkpoint, run
from places import in_folder, records, some_folder
from speed_worker import words

CHAIN = "avl+fastv"
WORKER = "avl_runtime.bench.own_requests"
PEER = "avl_runtime.bench.peers.openvino_vlm_peer"


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of which model.

    Attributes:
        preset: of make_random, or None for avl-tiny.
        options: of avl-export.
        weights, rows: of OpenVINO; `kv`: how avl keeps rows of the cache.
        bf16: whether avl is asked to compute in bf16 too, where the processor has AMX.
        size: width and height of pictures of noise, which a preset is asked about.
        pictures: of a round.
        same: whether texts in f32 are checked; random weights have near ties.
    """

    preset: str | None
    options: tuple[str, ...]
    policies: tuple[str, ...]
    weights: str
    rows: str
    pictures: int
    kv: str = "fp32"
    starts: int = 3
    repeats: int = 3
    new_tokens: int = 32
    same: bool = False
    bf16: bool = False
    size: tuple[int, int] = (640, 480)


INT4 = ("--quantize", "int4", "--quantize-also", "lm_head,vision")
CASES = {
    "tiny": Case(
        None, ("--dtype", "fp32"), ("dense", "fastv", "avl"), "fp16", "f16", 8, same=True, bf16=True
    ),
    "s1": Case("S1-vision", INT4, ("dense", "fastv", CHAIN), "int4", "u8", 3, "int8"),
    "try": Case(
        "small", INT4, ("dense",), "int4", "u8", 2, "int8", starts=1, repeats=1, new_tokens=4
    ),
}


def requests(case: Case, place: Path) -> list[list[dict[str, Any]]]:
    """Pictures, as files in `place`, and prompts of every round; no two alike."""
    found: list[dict[str, Any]] = []
    for number, (picture, prompt) in enumerate(islice(asked(case), rounds(case) * case.pictures)):
        file = place / f"{number}.png"
        picture.save(file)
        found.append({"picture": str(file), "prompt": prompt})
    return [found[at : at + case.pictures] for at in range(0, len(found), case.pictures)]


def asked(case: Case) -> Iterator[tuple[Any, str]]:
    """Pictures and prompts without end."""
    number = 0
    while True:
        if case.preset is None:
            (one,) = samples("ocr", "held-out", 1, number)
            yield one.image, one.prompt
        else:
            yield noise(case.size, number), words(16, number)
        number += 1


def rounds(case: Case) -> int:
    """Of a start; the first one does not count."""
    return 1 + case.repeats


def candidates(
    case: Case, package: Path, source: Path, python: str | None
) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """How each is started, and what it is told beside what all are told."""
    own = [sys.executable, "-m", WORKER]
    computes = {"": {"compute": "auto"}}
    kernels = host()
    if case.bf16 and kernels is not None and kernels.runs_amx():
        computes[" bf16"] = {"compute": "bf16"}
    found: dict[str, tuple[list[str], dict[str, Any]]] = {
        policy + told: (own, {"package": str(package), "policy": policy, "kv": case.kv, **job})
        for told, job in computes.items()
        for policy in case.policies
    }
    if python is None:
        return found
    peer = foreign_command(python, PEER)
    job = {"checkpoint": str(source), "weights": case.weights, "rows": case.rows}
    for name, precision in (("openvino", None), ("openvino f32", "f32")):
        found[name] = (peer, {**job, "precision": precision})
    return found


def measure(
    case: Case,
    started: Mapping[str, tuple[list[str], Mapping[str, Any]]],
    threads: int,
    idle_wait: float,
    tell: Any,
    ask: Callable[[Case, Path], list[list[dict[str, Any]]]] | None = None,
) -> dict[str, Any]:
    """One case, as a JSON object.

    Args:
        ask: what all are asked, if not `requests`.

    Raises:
        AvlError: a worker fails, or the machine is busy.
        SystemExit: prompts or texts differ.
    """
    figures: dict[str, Figures] = {name: Figures() for name in started}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="avl-requests-") as folder:
        place = Path(folder)
        job = {"new_tokens": case.new_tokens, "threads": threads, "folder": str(place)}
        job["rounds"] = (ask or requests)(case, place)
        for start in range(case.starts):
            with ExitStack() as stack:
                workers = {}
                for name, (command, told) in started.items():
                    tell(f"start {start + 1}: loading {name}")
                    workers[name] = stack.enter_context(Worker(name, command, threads))
                    answer = workers[name].ask({"do": "load", "job": {**job, **told}})
                    versions |= answer["versions"]
                    figures[name].weights = answer["weights"]
                for number, order in enumerate(orders(list(started), rounds(case))):
                    tell(f"start {start + 1}, round {number}")
                    for name in order:
                        wait_idle(idle_wait)
                        figures[name].ask(workers[name], case.new_tokens, counts=number > 0)
    check(case, figures)
    return {
        **{name: getattr(case, name) for name in ("preset", "pictures", "starts", "repeats")},
        "new_tokens": case.new_tokens,
        "prompt_tokens": figures[case.policies[0]].prompt_tokens,
        "threads": threads,
        "versions": versions,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "candidates": [one.row(name, figures[case.policies[0]]) for name, one in figures.items()],
    }


class Figures:
    """What one candidate's rounds gave."""

    def __init__(self) -> None:
        self.weights = ""
        self.first_s: list[float] = []
        self.total_s: list[float] = []
        self.token_s: list[float] = []  # of each token after the first
        self.cpu_s: list[float] = []
        self.texts: list[str] = []
        self.prompt_tokens = 0
        self.peak_rss_bytes = 0
        self.shares: list[float] = []

    def ask(self, worker: Worker, new_tokens: int, *, counts: bool) -> None:
        """A round.

        Raises:
            BenchError: the worker fails.
        """
        before = read_load()
        answer = worker.ask({"do": "run"})
        share = others_share(answer["cpu_s"], before, read_load(), os.sysconf("SC_CLK_TCK"))
        self.prompt_tokens = answer["requests"][0]["prompt_tokens"]
        self.peak_rss_bytes = max(self.peak_rss_bytes, answer["peak_rss_bytes"])
        if not counts:
            return
        if share is not None:
            self.shares.append(share)
        self.cpu_s.append(answer["cpu_s"] / len(answer["requests"]))
        for one in answer["requests"]:
            self.first_s.append(one["first_s"])
            self.total_s.append(one["total_s"])
            self.texts.append(one["text"].strip())
            self.token_s.append((one["total_s"] - one["first_s"]) / max(1, new_tokens - 1))

    def row(self, name: str, first: Figures) -> dict[str, Any]:
        """As the JSON has it; texts are compared with the `first` candidate's."""
        same = [mine == theirs for mine, theirs in zip(self.texts, first.texts, strict=True)]
        return {
            "name": name,
            "weights": self.weights,
            "first_ms": spread(self.first_s),
            "total_ms": spread(self.total_s),
            "token_ms": spread(self.token_s),
            "cpu_ms": spread(self.cpu_s),
            "peak_rss_bytes": self.peak_rss_bytes,
            "same_texts": round(sum(same) / len(same), 4),
            "disturbed": sum(one > DISTURBED for one in self.shares),
        }


def check(case: Case, figures: Mapping[str, Figures]) -> None:
    """Refuse what would not be a comparison.

    Raises:
        SystemExit: prompts have different lengths, or texts in f32 differ where they must not.
    """
    first = figures[case.policies[0]]
    for name, one in figures.items():
        if one.prompt_tokens != first.prompt_tokens:
            sys.exit(
                f"{name}: expected a prompt of {first.prompt_tokens} tokens, as "
                f"{case.policies[0]} reads, found {one.prompt_tokens}"
            )
        if case.same and name.endswith("f32") and one.texts != first.texts:
            pairs = zip(one.texts, first.texts, strict=True)
            mine, theirs = next(pair for pair in pairs if pair[0] != pair[1])
            sys.exit(
                f"{name}: expected {case.policies[0]}'s text {theirs!r}, found {mine!r}; was the "
                "checkpoint converted with all its weights?"
            )


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    found = dataclasses.asdict(Spread.of(seconds))
    return {name: round(1e3 * value, 3) for name, value in found.items()}


def table(name: str, report: Mapping[str, Any]) -> str:
    """A case as Markdown."""
    lines = [
        f"| {name}: {report['prompt_tokens']} tokens of prompt | first token ms | "
        f"{report['new_tokens']} tokens ms | peak MiB | same texts |",
        "|---|---|---|---|---|",
    ]
    for row in report["candidates"]:
        first, total = row["first_ms"]["median"], row["total_ms"]["median"]
        peak = row["peak_rss_bytes"] / 2**20
        lines.append(
            f"| {row['name']} | {first:.1f} | {total:.1f} | {peak:.0f} | {row['same_texts']:.0%} |"
        )
    return "\n".join(lines)


def export(case: Case, source: Path, package: Path) -> None:
    """Make a case's package if it is not there."""
    if not package.exists():
        options = ["--model", source, "--out", package, "--no-check", *case.options]
        run("-m", "avl_export.cli", *options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--only", choices=CASES, nargs="+", default=["tiny", "s1"], help="default: tiny s1")
    add("--folder", type=some_folder, default=ROOT / "build/bench", help="where packages are kept")
    add(
        "--peer-python",
        type=some_name,
        help="that scripts/peers.sh prints; without it avl is measured alone",
    )
    add("--threads", type=at_least_one, default=os.cpu_count(), help="default: all processors")
    add("--starts", type=at_least_one, help="of every process (default: the case's own)")
    add("--repeats", type=at_least_one, help="rounds of a start (default: the case's own)")
    add("--idle-wait", type=float, default=60, help="seconds; 0 measures on a busy machine")
    add("--json", type=in_folder, default=ROOT / "benchmarks/whole-requests.json")
    parsed = parser.parse_args(arguments)
    parsed.folder.mkdir(parents=True, exist_ok=True)
    report = records(parsed.json)

    def tell(line: str) -> None:
        print(f"whole_requests: {line}", file=sys.stderr, flush=True)

    try:
        python = parsed.peer_python and interpreter("openvino", parsed.peer_python)
        for name in parsed.only:
            given = {part: getattr(parsed, part) for part in ("starts", "repeats")}
            changes = {part: value for part, value in given.items() if value}
            case = dataclasses.replace(CASES[name], **changes)
            bundled = ROOT / "avl_export/models/avl-tiny"
            source = checkpoint(parsed.folder, case.preset, "fp16") if case.preset else bundled
            package = parsed.folder / f"whole-{case.preset or 'tiny'}.avl"
            export(case, source, package)
            started = candidates(case, package, source, python)
            report[name] = measure(case, started, parsed.threads, parsed.idle_wait, tell)
            print(table(name, report[name]), flush=True)
            parsed.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except AvlError as error:
        sys.exit(f"whole_requests: {error}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Ten questions about the same pictures, with the prefix cache and without, on an idle machine.

    .venv/bin/python scripts/prefix_speed.py --json benchmarks/prefix-speed.json

A package of S1 in INT4, five pictures of 576 tokens in front of every question, greedy answers of
16 tokens. In each round all questions are asked of a model that keeps nothing, one after the other,
and then of one that keeps rows of prompts; both begin the round without anything known. Features of
pictures that were encoded are kept in both, as always: without the cache pictures are encoded once
and read ten times. Times are of whole requests, by the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.bench.idle import wait_idle
from avl_runtime.bench.surroundings import machine
from avl_runtime.prompts.features import FeatureCache
from bench_all import ROOT, Record, package
from greedy_requests import GREEDY
from measured import run_starts
from ratios import ratios
from speed_worker import noise, words

CASES = {"dense": ("auto", "dense"), "dense int8": ("int8", "dense"), "avl int8": ("int8", "avl")}
SIDE = 336  # pixels of a picture
RUN = 256  # tokens of a prompt that are read at one time, and shared only together


def measure(
    folder: Path,
    kv: str,
    policy: str,
    *,
    pictures: int,
    questions: int,
    question_tokens: int,
    new_tokens: int,
    threads: int,
    repeats: int,
    idle_wait: float,
) -> dict[str, Any]:
    """Rounds of one process, after one that does not count.

    Raises:
        AvlError: the machine is busy, or a request cannot be run.
        SystemExit: rows are not shared as they should be.
    """
    models = {
        "without": LVLM.load(folder, "ort-cpu", threads=threads, kv=kv),
        "with": LVLM.load(folder, "ort-cpu", threads=threads, kv=kv, prefix_cache="auto"),
    }
    images = [noise(SIDE, number) for number in range(pictures)]
    asked = [words(question_tokens, number) for number in range(questions)]

    def ask(name: str) -> dict[str, Any]:
        model = models[name]
        encoded = model.loaded.package.manifest.encoded
        model.loaded.features = FeatureCache(model.loaded.backend, encoded)
        if model.loaded.prefixes is not None:
            model.loaded.prefixes.clear()
        seconds, results = [], []
        for question in asked:
            begun = time.perf_counter()
            results.append(
                model.generate(
                    question,
                    images,
                    policy=policy,
                    max_new_tokens=new_tokens,
                    min_new_tokens=new_tokens,
                    **GREEDY,
                )
            )
            seconds.append(time.perf_counter() - begun)
        return {
            "seconds": seconds,
            "prefill_ms": [one.stats.prefill_ms for one in results],
            "token_ms": statistics.median(one.stats.decode_ms_per_token for one in results),
            "prefix_tokens": [one.stats.prefix_tokens for one in results],
            "prompt_tokens": results[0].stats.prompt_tokens,
            "visual_tokens": results[0].stats.visual_tokens,
            "replies": [list(one.token_ids) for one in results],
        }

    rounds = []
    for _ in range(1 + repeats):
        wait_idle(idle_wait)
        found = {name: ask(name) for name in models}
        known = found["with"]["prefix_tokens"]
        wanted = found["with"]["visual_tokens"] // RUN * RUN
        if any(found["without"]["prefix_tokens"]) or min(known[1:]) < wanted:
            sys.exit(f"expected rows of all pictures from the second question on, found {known}")
        pairs = zip(found["without"].pop("replies"), found["with"].pop("replies"), strict=True)
        rounds.append(found | {"same_replies": sum(one == other for one, other in pairs)})
    kept = models["with"].loaded.prefixes
    return {"rounds": rounds[1:], "prefix_bytes": 0 if kept is None else kept.nbytes}


def figures(starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all starts: the ratio of times, and what a question takes."""
    rounds = [one for start in starts for one in start["rounds"]]
    first = rounds[0]["with"]

    def middle(name: str, part: str, asked: slice) -> float:
        found: list[float] = [value for one in rounds for value in one[name][part][asked]]
        return statistics.median(found)

    return {
        "prompt_tokens": first["prompt_tokens"],
        "visual_tokens": first["visual_tokens"],
        "prefix_tokens": first["prefix_tokens"][-1],
        "prefix_bytes": starts[0]["prefix_bytes"],
        "ratio": ratios(
            [(sum(one["without"]["seconds"]), sum(one["with"]["seconds"])) for one in rounds]
        ),
        "seconds": {
            name: round(statistics.median(sum(one[name]["seconds"]) for one in rounds), 3)
            for name in ("without", "with")
        },
        "prompt_ms": {
            "without": round(middle("without", "prefill_ms", slice(1, None)), 1),
            "first": round(middle("with", "prefill_ms", slice(1)), 1),
            "others": round(middle("with", "prefill_ms", slice(1, None)), 1),
        },
        "token_ms": {
            name: round(statistics.median(one[name]["token_ms"] for one in rounds), 2)
            for name in ("without", "with")
        },
        "same_replies": min(one["same_replies"] for one in rounds),
        "peak_rss_bytes": max(start["peak_rss_bytes"] for start in starts),
    }


def sentence(case: str, found: Mapping[str, Any], questions: int) -> str:
    ratio, prompt = found["ratio"], found["prompt_ms"]
    return (
        f"{case}: {questions} questions take {ratio['median']:.3f} of the time without the cache "
        f"(quartiles {ratio['quartile_1']:.3f}-{ratio['quartile_3']:.3f}): a prompt "
        f"{prompt['others']:.0f} ms in place of {prompt['without']:.0f} ms, the first "
        f"{prompt['first']:.0f} ms; {found['same_replies']} of {questions} replies are the same"
    )


def sentences(report: Mapping[str, Any]) -> str:
    """A record as Markdown, a line each case."""
    questions = report["sizes"]["questions"]
    told = (sentence(case, found, questions) for case, found in report["cases"].items())
    return "\n".join(f"- {line}" for line in told)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parsed = parser().parse_args(arguments)
    if parsed.worker is not None:
        try:
            job = json.loads(parsed.worker)
            print(json.dumps(measure(**job | {"folder": Path(job["folder"])})))
        except (AvlError, ValueError) as error:
            sys.exit(f"prefix_speed: {error}")
        return 0
    made = parsed.package
    if made is None:
        parsed.folder.mkdir(parents=True, exist_ok=True)
        made = package(parsed.folder, Record("S1", (), (), stored="fp16", kind="int4"), "int4")
    names = ("pictures", "questions", "question_tokens", "new_tokens", "threads", "repeats")
    sizes = {name: getattr(parsed, name) for name in (*names, "idle_wait")}
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "starts": parsed.starts,
        "sizes": sizes,
        "cases": {},
    }
    for case in parsed.cases:
        kv, policy = CASES[case]
        worker = sizes | {"folder": str(made), "kv": kv, "policy": policy}
        starts = run_starts(__file__, case, worker, parsed.starts)
        report["cases"][case] = found = {"kv": kv, "policy": policy} | figures(starts)
        print(sentence(case, found, parsed.questions), flush=True)
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = found.add_argument
    add("--cases", nargs="+", choices=CASES, default=list(CASES))
    add("--package", type=Path, help="in place of S1's: one of a make_random.py's")
    add("--folder", type=Path, default=ROOT / "build/bench", help="where S1 is kept")
    add("--pictures", type=int, default=5, help="of 336 pixels each (default: 5)")
    add("--questions", type=int, default=10, help="default: 10")
    add("--question-tokens", type=int, default=16, help="words of a question (default: 16)")
    add("--new-tokens", type=int, default=16, help="of an answer (default: 16)")
    add("--threads", type=int, default=os.cpu_count(), help="default: all processors")
    add("--starts", type=int, default=2, help="default: 2")
    add("--repeats", type=int, default=2, help="rounds of a start that count (default: 2)")
    add(
        "--idle-wait",
        type=float,
        default=60,
        help="seconds to wait for an idle machine, 0 to measure on a busy one (default: 60)",
    )
    add("--worker", metavar="JOB", help=argparse.SUPPRESS)
    add("--json", type=Path)
    return found


if __name__ == "__main__":
    sys.exit(main())

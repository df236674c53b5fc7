#!/usr/bin/env python
"""Four greedy requests together, and one after the other: decode time, beside the bytes read.

    .venv/bin/python scripts/together.py --json benchmarks/together.json

Weights are read once for all sequences of a step, rows of the cache by each for itself. So the
bytes say what the ratio of decode times (together over in a row) can be: (W + nK) / (nW + nK), W
the bytes of weights that a step reads, K those of one sequence's keys and values, and n requests.
Every start is a process of its own; in each round the requests run in a row, then together.
`decode` is what the replies' own stats tell; `by_wall` is wall time, less that of the same requests
with one new token each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.bench.idle import wait_idle
from avl_runtime.bench.surroundings import machine
from bench_all import ROOT, Record, package
from bench_targets import row_bytes, weight_bytes
from greedy_requests import GREEDY
from measured import run_starts
from ratios import ratios
from speed_worker import fill, noise, words

BITS = {"fp32": 32, "fp16": 16}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is asked of a preset.

    Attributes:
        stored: its weights; they are computed with in fp32.
        text_tokens: of a prompt, the template's included.
    """

    stored: str
    pictures: int
    text_tokens: int
    new_tokens: int = 128
    requests: int = 4


CASES = {"half-billion": Sizes("fp16", 1, 64), "S1": Sizes("fp32", 5, 128)}


def measure(
    folder: Path, sizes: Sizes, policy: str, threads: int, repeats: int, idle_wait: float
) -> dict[str, Any]:
    """Rounds of one process, after a round that does not count.

    Raises:
        AvlError: the machine is busy, or a request cannot be run.
        SystemExit: a reply ends early, or stats tell of more time than has passed.
    """
    model = LVLM.load(folder, backend="ort-cpu", threads=threads)
    images = [
        [noise(336, 100 * number + one) for one in range(sizes.pictures)]
        for number in range(sizes.requests)
    ]
    first, stats = fill(model, images[0], sizes.text_tokens)
    prompts = [words(len(first.split()), number) for number in range(sizes.requests)]

    def in_a_row(new_tokens: int) -> list[list[Any]]:
        return [
            [
                model.generate(
                    prompt, images=shown, policy=policy, max_new_tokens=new_tokens, **GREEDY
                )
            ]
            for prompt, shown in zip(prompts, images, strict=True)
        ]

    def together(new_tokens: int) -> list[list[Any]]:
        return [
            model.generate_batch(
                prompts, images=images, policy=policy, max_new_tokens=new_tokens, **GREEDY
            )
        ]

    rounds = []
    for _ in range(1 + repeats):
        wait_idle(idle_wait)
        row, both = one_way(in_a_row, sizes.new_tokens), one_way(together, sizes.new_tokens)
        same = [
            one == two for one, two in zip(row.pop("replies"), both.pop("replies"), strict=True)
        ]
        rounds.append({"in_a_row": row, "together": both, "same_replies": sum(same)})
    return {
        "prompt_tokens": stats.prompt_tokens,
        "visual_tokens": stats.visual_tokens,
        "rounds": rounds[1:],
    }


def one_way(ask: Callable[[int], list[list[Any]]], new_tokens: int) -> dict[str, Any]:
    """Seconds that decoding takes, by stats and by wall, and the replies' tokens.

    Args:
        ask: runs all requests with so many new tokens; returns results, batch by batch.

    Raises:
        SystemExit: a reply ends early, or stats tell of more time than has passed.
    """
    begun = time.perf_counter()
    ask(1)
    prompts_s = time.perf_counter() - begun
    begun = time.perf_counter()
    batches = ask(new_tokens)
    wall_s = time.perf_counter() - begun
    replies = [list(result.token_ids) for batch in batches for result in batch]
    shortest = min(map(len, replies))
    if shortest != new_tokens:
        sys.exit(
            f"expected {new_tokens} new tokens, found a reply that ends after {shortest}; ask for "
            "fewer with --new-tokens"
        )
    decode_s = sum(
        max(result.stats.decode_ms_per_token for result in batch) for batch in batches
    ) * ((new_tokens - 1) / 1e3)
    prefill_s = sum(max(result.stats.prefill_ms for result in batch) for batch in batches) / 1e3
    if decode_s + prefill_s > 1.01 * wall_s:
        sys.exit(
            f"expected stats of at most the {wall_s:.3f} s that have passed, found "
            f"{decode_s + prefill_s:.3f} s; what they count has changed, and this script has to"
        )
    return {
        "decode_s": decode_s,
        "decode_wall_s": wall_s - prompts_s,
        "prefill_s": prefill_s,
        "replies": replies,
    }


def figures(
    starts: Sequence[Mapping[str, Any]], sizes: Sizes, dims: Mapping[str, int]
) -> dict[str, Any]:
    """Of all starts: ratios, times a step and bytes."""
    rounds = [one for start in starts for one in start["rounds"]]
    weights = weight_bytes(dims, BITS[sizes.stored])
    rows = row_bytes(dims) * (starts[0]["prompt_tokens"] + sizes.new_tokens / 2)
    count, steps = sizes.requests, sizes.new_tokens - 1
    found: dict[str, Any] = {
        "sizes": dataclasses.asdict(sizes),
        "prompt_tokens": starts[0]["prompt_tokens"],
        "visual_tokens": starts[0]["visual_tokens"],
    }
    for name, part in (("decode", "decode_s"), ("by_wall", "decode_wall_s")):
        pairs = [(one["in_a_row"][part], one["together"][part]) for one in rounds]
        found[name] = ratios(pairs)
    for way, sequences in (("in_a_row", 1), ("together", count)):
        seconds = statistics.median(one[way]["decode_s"] for one in rounds)
        step_s = seconds / steps * sequences / count
        read = weights + sequences * rows
        found[way] = {
            "step_ms": round(1e3 * step_s, 3),
            "token_ms": round(1e3 * step_s / sequences, 3),
            "bytes_a_step": round(read),
            "bytes_a_token": round(read / sequences),
            "gigabytes_a_second": round(read / step_s / 1e9, 2),
        }
    ratio = (weights + count * rows) / (count * (weights + rows))
    found["bytes_say"] = round(ratio, 4)
    found["same_replies"] = min(one["same_replies"] for one in rounds)
    found["peak_rss_bytes"] = max(start["peak_rss_bytes"] for start in starts)
    return found


def sentence(preset: str, found: Mapping[str, Any]) -> str:
    count, decode, wall = found["sizes"]["requests"], found["decode"], found["by_wall"]
    return (
        f"{preset}: {count} together take {decode['median']:.3f} of the decode time of {count} in "
        f"a row (quartiles {decode['quartile_1']:.3f}-{decode['quartile_3']:.3f}; by wall "
        f"{wall['median']:.3f}; bytes say {found['bytes_say']:.3f}), "
        f"{found['in_a_row']['token_ms']:.2f} ms a token alone and "
        f"{found['together']['token_ms']:.2f} ms together; {found['same_replies']} of {count} "
        "replies are the same"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parsed = parser().parse_args(arguments)
    if parsed.worker is not None:
        try:
            job = json.loads(parsed.worker)
            job |= {"folder": Path(job["folder"]), "sizes": Sizes(**job["sizes"])}
            print(json.dumps(measure(**job)))
        except (AvlError, ValueError) as error:
            sys.exit(f"together: {error}")
        return 0
    parsed.folder.mkdir(parents=True, exist_ok=True)
    names = ("pictures", "text_tokens", "new_tokens", "requests")
    changes = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "threads": parsed.threads,
        "starts": parsed.starts,
        "repeats": parsed.repeats,
        "policy": parsed.policy,
        "idle_wait_s": parsed.idle_wait,
        "presets": {},
    }
    for preset in parsed.presets:
        sizes = dataclasses.replace(CASES[preset], **changes)
        made = parsed.package
        if made is None:
            record = Record(preset, (), (), stored=sizes.stored)
            made = package(parsed.folder, record, record.kind)
        worker = {
            "folder": str(made),
            "sizes": dataclasses.asdict(sizes),
            "policy": parsed.policy,
            "threads": parsed.threads,
            "repeats": parsed.repeats,
            "idle_wait": parsed.idle_wait,
        }
        starts = run_starts(__file__, preset, worker, parsed.starts)
        dims = json.loads((made / "avl.json").read_text(encoding="utf-8"))["dims"]
        report["presets"][preset] = found = figures(starts, sizes, dims)
        print(sentence(preset, found))
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = found.add_argument
    add("--presets", nargs="+", choices=CASES, default=list(CASES))
    add("--package", type=Path, help="in place of the presets' own: one of a make_random.py's")
    add("--folder", type=Path, default=ROOT / "build/bench", help="where presets are kept")
    add("--policy", default="dense")
    add("--pictures", type=int, help="of 336 pixels each, a prompt (default: the preset's)")
    add("--text-tokens", type=int, help="the template's included (default: the preset's)")
    add("--new-tokens", type=int, help="default: 128")
    add("--requests", type=int, help="default: 4")
    add("--threads", type=int, default=os.cpu_count(), help="default: all processors")
    add("--starts", type=int, default=3, help="default: 3")
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

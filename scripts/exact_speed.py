#!/usr/bin/env python
"""Decode time of `avl:exact` over `dense` on a long prompt, drafts right as often as avl-tiny's.

    .venv/bin/python scripts/exact_speed.py --json benchmarks/exact-speed.json

A decoder of random weights attends to nothing in particular, so that its drafts tell nothing about
those of a trained one. So acceptance is replayed: avl-tiny, which is trained, answers held-out
questions with each core, and how often its draft number i is right where those before it were is
noted. On the large decoder every draft is computed as usual, and then replaced by the token that
`dense` said there, or with the rest of the chance by another. Everything else is as without the
replay: checks are real, and tokens must be those of `dense`, which have been made in the same
round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.bench.idle import wait_idle
from avl_runtime.bench.surroundings import idle_surroundings
from avl_runtime.generate.core_drafts import CoreDrafts
from avl_runtime.generate.reply import Reply
from avl_runtime.tasks import sample
from avl_runtime.tasks.sample import Task
from bench_all import ROOT, run
from greedy_requests import GREEDY
from ratios import ratios
from speed_worker import fill, noise, words

MOST = 16  # rows of a check, with which avl-tiny is asked
CORES = (0.1, 0.2, 0.3)
CONTEXT = 16384
TASKS: tuple[Task, ...] = ("ocr", "caption")


@contextmanager
def noted() -> Iterator[list[tuple[int, int]]]:
    """Drafted and accepted tokens of each check inside the block."""
    found: list[tuple[int, int]] = []
    count = CoreDrafts.count

    def note(self: CoreDrafts, drafted: int, accepted: int) -> None:
        found.append((drafted, accepted))
        count(self, drafted, accepted)

    CoreDrafts.count = note  # type: ignore[method-assign]
    try:
        yield found
    finally:
        CoreDrafts.count = count  # type: ignore[method-assign]


def acceptance(model: LVLM, core: float, samples: int) -> list[float]:
    """How often avl-tiny's draft number i is right, where those before it were; i from 0."""
    with noted() as checks:
        for task in TASKS:
            for number in range(samples):
                one = sample(task, "held-out", number)
                model.generate(
                    one.prompt, [one.image], policy=f"avl:exact,core={core},n={MOST}", **GREEDY
                )
    found: list[float] = []
    for place in range(MOST - 1):
        tried = [accepted > place for drafted, accepted in checks if drafted > place <= accepted]
        found.append(sum(tried) / len(tried) if tried else found[-1])
    return found


@contextmanager
def replayed(said: Sequence[int], chances: Sequence[float], seed: int) -> Iterator[None]:
    """Inside the block drafts are tokens of `said`, each with its chance, and else wrong ones."""
    numbers = np.random.default_rng(seed)
    guess = Reply.guess

    def forced(self: Reply, logits: NDArray[np.float32], history: Sequence[int], ahead: int) -> int:
        guess(self, logits, history, ahead)
        right = said[len(self.token_ids) + ahead]
        return right if numbers.random() < chances[ahead] else (right + 1) % len(logits)

    Reply.guess = forced  # type: ignore[method-assign]
    try:
        yield
    finally:
        Reply.guess = guess  # type: ignore[method-assign]


class Asked:
    """One long prompt, asked under several policies."""

    def __init__(
        self, folder: Path, kv: str, threads: int, pictures: int, text: int, new: int
    ) -> None:
        # The prompt is the same in every request, and only decode steps are timed.
        self._model = LVLM.load(
            folder, backend="ort-cpu", kv=kv, threads=threads, prefix_cache="auto"
        )
        self._images = [noise(336, seed) for seed in range(pictures)]
        first, self.stats = fill(self._model, self._images, text)
        self._prompt, self._new = words(len(first.split())), new

    def ask(self, policy: str) -> Any:
        """The result of a request.

        Raises:
            SystemExit: the reply ends early.
        """
        found = self._model.generate(
            self._prompt, self._images, policy=policy, max_new_tokens=self._new, **GREEDY
        )
        if found.stats.new_tokens != self._new:
            sys.exit(f"expected {self._new} new tokens, found {found.stats.new_tokens}; ask fewer")
        return found


def told(result: Any) -> dict[str, Any]:
    stats = result.stats
    return {
        "decode_ms_per_token": stats.decode_ms_per_token,
        "drafted": stats.drafted,
        "accepted": stats.accepted,
    }


def one_round(
    asked: Asked, chances: Mapping[str, Sequence[float]], number: int, idle_wait: float
) -> dict[str, Any]:
    """Dense, then each policy with its drafts replayed.

    Raises:
        SystemExit: tokens are not those of `dense`.
    """
    wait_idle(idle_wait)
    dense = asked.ask("dense")
    found = {"dense": told(dense)}
    for policy, right in chances.items():
        with replayed(dense.token_ids, right, number):
            result = asked.ask(policy)
        if result.token_ids != dense.token_ids:
            sys.exit(f"{policy}: expected the tokens of dense, found others")
        found[policy] = told(result)
    return found


def package(folder: Path, context: int) -> Path:
    """S1 with room for long prompts, INT4; made if it is not there."""
    source, made = folder / f"S1-{context}", folder / f"S1-{context}-int4.avl"
    if not source.exists():
        run(ROOT / "scripts/make_random.py", source, "--preset", "S1", "--context", context)
    if not made.exists():
        options = ["--model", source, "--out", made, "--no-check"]
        run("-m", "avl_export.cli", *options, "--quantize", "int4", "--quantize-also", "lm_head")
    return made


def sentence(report: Mapping[str, Any]) -> str:
    parts = [
        f"`{name}` {one['over_dense']['median']:.2f} ({one['accepted']} of {one['drafted']} drafts)"
        for name, one in report["policies"].items()
    ]
    return (
        f"{report['prompt_tokens']} tokens of prompt, decode time over `dense`'s "
        f"({report['dense_ms_per_token']:.1f} ms a token): {', '.join(parts)}."
    )


def summed(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Ratios to dense, of pairs of the same round."""
    found = {}
    for policy in rounds[0]:
        if policy == "dense":
            continue
        pairs = [
            (r["dense"]["decode_ms_per_token"], r[policy]["decode_ms_per_token"]) for r in rounds
        ]
        drafted = sum(one[policy]["drafted"] for one in rounds)
        accepted = sum(one[policy]["accepted"] for one in rounds)
        found[policy] = {"over_dense": ratios(pairs), "drafted": drafted, "accepted": accepted}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parsed = parser().parse_args(arguments)
    parsed.folder.mkdir(parents=True, exist_ok=True)
    tiny = parsed.folder / "avl-tiny.avl"
    if not tiny.exists():
        run("-m", "avl_export.cli", "--model", "avl-tiny", "--out", tiny, "--no-check")
    with LVLM.load(tiny, backend="ort-cpu", threads=parsed.threads) as trained:
        right = {core: acceptance(trained, core, parsed.samples) for core in parsed.cores}
    folder = parsed.package or package(parsed.folder, CONTEXT)
    try:
        surroundings = idle_surroundings(parsed.threads, parsed.idle_wait)
        sizes = parsed.pictures, parsed.text_tokens, parsed.new_tokens
        asked = Asked(folder, parsed.kv, parsed.threads, *sizes)
        chances = {f"avl:exact,core={core}": chance for core, chance in right.items()}
        rounds = []
        for number in range(1 + parsed.rounds):
            print(f"exact_speed: round {number} of {parsed.rounds}", file=sys.stderr, flush=True)
            rounds.append(one_round(asked, chances, number, parsed.idle_wait))
    except AvlError as error:
        sys.exit(f"exact_speed: {error}")
    counted = rounds[1:] or rounds
    report: dict[str, Any] = {
        **surroundings,
        "kv": parsed.kv,
        "rounds": len(counted),
        "prompt_tokens": asked.stats.prompt_tokens,
        "visual_tokens": asked.stats.visual_tokens,
        "new_tokens": parsed.new_tokens,
        "replayed": "each draft is right as often as avl-tiny's, where those before it were",
        "chances": {str(core): [round(one, 4) for one in all_] for core, all_ in right.items()},
        "dense_ms_per_token": round(
            statistics.median(one["dense"]["decode_ms_per_token"] for one in counted), 3
        ),
        "policies": summed(counted),
    }
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(sentence(report))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = found.add_argument
    add("--package", type=Path, help="in place of S1 in INT4: one of a make_random.py's")
    add("--kv", default="auto", help="how rows are stored, as of avl-run (default: auto)")
    add("--folder", type=Path, default=ROOT / "build/bench", help="where packages are kept")
    add("--cores", type=float, nargs="+", default=list(CORES), help="default: 0.1 0.2 0.3")
    add("--samples", type=int, default=40, help="of a task, for avl-tiny (default: 40)")
    add("--pictures", type=int, default=20, help="of 576 tokens each (default: 20)")
    add("--text-tokens", type=int, default=480, help="the template's included (default: 480)")
    add("--new-tokens", type=int, default=128, help="default: 128")
    add("--rounds", type=int, default=3, help="that count, behind one that does not (default: 3)")
    add("--threads", type=int, default=os.cpu_count(), help="default: all processors")
    add("--idle-wait", type=float, default=60, help="seconds; 0 measures on a busy machine")
    add("--json", type=Path)
    return found


if __name__ == "__main__":
    main()

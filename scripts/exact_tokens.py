#!/usr/bin/env python
"""Whether `avl:exact` and prompt lookup say what `dense` says: avl-tiny, and random configurations.

    .venv/bin/python scripts/exact_tokens.py --json benchmarks/exact-tokens.json

avl-tiny answers held-out questions until dense attention has said 2,000 tokens, one by one and in
batches, greedy and sampled. Then come small checkpoints with random weights (make_random.py): their
shapes, and core, n, drafts by lookup and sampling, are drawn. Ends with 1 at the first token that
differs, and tells how far the two largest logits are apart there, which tells a tie from a fault.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avl_export.cli import main as export
from avl_runtime import LVLM
from avl_runtime.bench.surroundings import machine
from avl_runtime.tasks import sample
from avl_runtime.tasks.sample import Task
from greedy_requests import numbered
from make_random import write
from random_config import Shape
from speed_worker import noise

TASKS: tuple[Task, ...] = ("ocr", "caption", "vqa")
SPECS = ("avl:exact,core=0.1,n=8", "avl:exact,core=0.02,n=16", "avl:exact,core=0.3,n=4")
CHOICES: Mapping[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 11},
}
PROMPTS = (
    "What is in the picture?",
    "Read the text.",
    "Describe the image. Describe the image.",
    "Is the red ring above the blue square?",
)
BATCH = 4


class Count:
    """What was compared."""

    def __init__(self) -> None:
        self.tokens = self.drafted = self.accepted = 0

    def add(self, where: str, wanted: Sequence[Any], found: Sequence[Any]) -> None:
        """Compare replies with dense ones.

        Raises:
            SystemExit: a token differs.
        """
        for one, other in zip(wanted, found, strict=True):
            self.tokens += len(one.token_ids)
            self.drafted += other.stats.drafted
            self.accepted += other.stats.accepted
            if one.token_ids == other.token_ids:
                continue
            both = zip(one.token_ids, other.token_ids, strict=False)
            place = next((at for at, (a, b) in enumerate(both) if a != b), -1)
            second, first = np.sort(one.logits[place])[-2:]
            sys.exit(
                f"{where}: expected the tokens of dense, found others from number {place} on, "
                f"where the largest two logits are {first - second:.2e} apart"
            )

    def told(self) -> dict[str, int]:
        return {"tokens": self.tokens, "drafted": self.drafted, "accepted": self.accepted}


def compare(
    model: LVLM,
    where: str,
    spec: str,
    asked: Sequence[tuple[str, Sequence[Image.Image]]],
    options: Mapping[str, Any],
    count: Count,
    alone: bool,
) -> int:
    """Ask dense attention and `spec`, one by one or together; returns dense attention's tokens."""
    plain = {name: value for name, value in options.items() if name != "prompt_lookup"}
    replies = []
    for policy, given in (("dense", plain), (spec, options)):
        named = {**given, "policy": policy, "return_logits": True}
        if alone:
            replies.append([model.generate(text, list(shown), **named) for text, shown in asked])
        else:
            texts, pictures = [text for text, _ in asked], [list(shown) for _, shown in asked]
            replies.append(list(model.generate_batch(texts, images=pictures, **named)))
    count.add(where, *replies)
    return sum(len(one.token_ids) for one in replies[0])


def of_tiny(model: LVLM, tokens: int) -> dict[str, Any]:
    """So many tokens of avl-tiny for each spec, each choice, alone and in batches."""
    found = {}
    for spec in SPECS:
        for choice, options in CHOICES.items():
            for alone in (True, False):
                count, said, number = Count(), 0, 0
                name = f"{spec} {choice} {'one by one' if alone else f'batches of {BATCH}'}"
                while said < tokens:
                    each = [sample(TASKS[n % 3], "held-out", n) for n in range(number, number + 4)]
                    asked = [(one.prompt, [one.image]) for one in each]
                    said += compare(model, name, spec, asked, options, count, alone)
                    number += BATCH
                found[name] = count.told()
                print(f"{name}: {count.told()}", flush=True)
    return found


def shape(numbers: random.Random) -> Shape:
    """A small decoder."""
    heads = numbers.choice((4, 6, 8))
    return Shape(
        hidden=heads * numbers.choice((16, 32, 64)),
        intermediate=numbers.choice((96, 160, 352)),
        layers=numbers.randint(3, 6),
        heads=heads,
        kv_heads=numbers.choice((heads, heads // 2, 2)),
        vocabulary=1024,
        context=2048,
        image_tokens=numbers.choice((16, 36, 64, 100)),
        vision_hidden=64,
        vision_layers=1,
        dtype=numbers.choice(("fp32", "fp16")),
    )


def of_random(seed: int, folder: Path) -> dict[str, Any]:
    """One checkpoint of random weights, under options that are drawn."""
    numbers = random.Random(seed)
    drawn = shape(numbers)
    write(folder / "model", drawn, seed)
    export(["--model", str(folder / "model"), "--out", str(folder / "made.avl"), "--no-check"])
    model = LVLM.load(folder / "made.avl", backend="ort-cpu", threads=1)
    core, most = round(numbers.uniform(0.02, 0.6), 2), numbers.randint(2, 16)
    options: dict[str, Any] = {"max_new_tokens": 50, **numbers.choice(list(CHOICES.values()))}
    if numbers.random() < 0.5:
        options["prompt_lookup"] = numbers.randint(1, 15)
    spec = f"avl:exact,core={core},n={most}"
    asked = [
        (numbered(text), [noise(56, 10 * seed + number)]) for number, text in enumerate(PROMPTS)
    ]
    count = Count()
    for alone in (True, False):
        compare(model, f"seed {seed}, {spec}, {options}", spec, asked, options, count, alone)
    return {"shape": dataclasses.asdict(drawn), "spec": spec, "options": options, **count.told()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tokens", type=int, default=2000, help="of avl-tiny (default: 2000)")
    parser.add_argument("--random", type=int, default=20, help="configurations (default: 20)")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args(arguments)
    report: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder, "tiny.avl")
        export(["--model", "avl-tiny", "--out", str(tiny), "--no-check"])
        report["avl-tiny"] = of_tiny(LVLM.load(tiny, backend="ort-cpu", threads=1), parsed.tokens)
    report["random"] = {}
    for seed in range(parsed.random):
        with tempfile.TemporaryDirectory() as folder:
            found = report["random"][str(seed)] = of_random(seed, Path(folder))
            print(f"seed {seed}: {found}", flush=True)
    report["differences"] = 0
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    several = [*report["avl-tiny"].values(), *report["random"].values()]
    total = {name: sum(one[name] for one in several) for name in ("tokens", "drafted", "accepted")}
    print(f"no token of {total['tokens']} differs: {total}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""How much of A-VL's core a refresh replaces, with trained and with random weights.

    scripts/churn.py build/avl-tiny.avl build/bench/S1-none.avl --json benchmarks/churn.json

Asks each package questions and follows where image tokens are. The rows that change places are what
a refresh moves outside the graph; see attention_part.py for what that costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from avl_runtime import LVLM
from avl_runtime.bench.surroundings import machine
from avl_runtime.generate.results import Placement
from avl_runtime.tasks import TASKS, samples
from avl_runtime.vision.load.images import ImageLike

POLICIES = ("avl:keep=0.5,core=0.3,refresh=3", "avl:core=0.1,refresh=8")


def churn(placements: Sequence[Placement]) -> list[float]:
    """Share of the core that each refresh replaces, over all layers."""
    return [
        float((after.core & ~before.core).sum() / before.core.sum())
        for before, after in pairwise(placements)
    ]


def questions(model: LVLM, count: int) -> list[tuple[str, list[ImageLike]]]:
    """Held-out samples of avl-tiny's tasks; noise for other models, in as many tokens as S1 has."""
    if model.loaded.package.manifest.model == "avl-tiny":
        asked = [s for task in TASKS for s in samples(task, "held-out", count)]
        return [(sample.prompt, [sample.image]) for sample in asked]
    numbers = np.random.default_rng(0)
    pictures: list[ImageLike] = [
        Image.fromarray(numbers.integers(0, 256, (336, 336, 3), np.uint8)) for _ in range(5)
    ]
    return [("What do these pictures show, one after the other?", pictures)]


def measure(package: Path, count: int, tokens: int) -> dict[str, dict[str, float]]:
    """Median and quartiles of the core's share that a refresh replaces, by policy."""
    model = LVLM.load(package, backend="ort-cpu")
    found = {}
    for policy in POLICIES:
        shares: list[float] = []
        for prompt, images in questions(model, count):
            result = model.generate(
                prompt, images, policy=policy, return_placements=True, max_new_tokens=tokens
            )
            shares += churn(result.placements)
        first, median, third = statistics.quantiles(shares, n=4)
        found[policy] = {
            "refreshes": len(shares),
            "median": round(median, 3),
            "quartile_1": round(first, 3),
            "quartile_3": round(third, 3),
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--count", type=int, default=20, help="samples of each of avl-tiny's tasks")
    parser.add_argument("--tokens", type=int, default=64, help="of a reply, at most")
    parsed = parser.parse_args(arguments)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "packages": {
            package.stem: measure(package, parsed.count, parsed.tokens)
            for package in parsed.packages
        },
    }
    text = json.dumps(report, indent=2)
    print(text)
    if parsed.json:
        parsed.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Measure every policy's quality and memory on held-out samples; JSON on stdout or to a file.

    .venv/bin/python scripts/quality.py build/avl-tiny.avl --samples 200 \
        --json benchmarks/quality.json --table

Scores: caption F1 over (colour, shape, place), vqa exact match, ocr share of characters. `kv` is
the mean share of a dense KV cache's bytes, text and room for growth included; `image_kv` the share
of image rows alone, over all layers, at the end of prefill.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from avl_runtime import LVLM
from avl_runtime.package import load_package
from avl_runtime.tasks import TASKS, samples
from avl_runtime.tasks.metrics import score

POLICIES = (
    "dense",
    "fastv:layer=2,keep=0.5",
    "random:layer=2,keep=0.5",
    "avl:keep=0.5,core=0.3,refresh=3",
    "random:of=avl,keep=0.5,core=0.3,refresh=3",
    "avl:keep=0.5,core=0.3,refresh=3,text=0.6",
    "avl:keep=0.5,core=0.3,refresh=3+fastv:layer=2,keep=0.5",
    "fastv:layer=2,keep=0.25",
    "random:layer=2,keep=0.25",
    "avl:keep=0.25,core=0.15,refresh=3",
    "random:of=avl,keep=0.25,core=0.15,refresh=3",
)


def measure(package: Path, policy: str, count: int, blank: bool) -> dict[str, object]:
    """Scores of one policy on `count` held-out samples a task; `blank` hides the pictures."""
    model = LVLM.load(package, threads=1)
    scores: dict[str, float] = {}
    shares, image_shares = [], []
    for task in TASKS:
        total = 0.0
        for sample in samples(task, "held-out", count):
            image = Image.new("RGB", sample.image.size, "white") if blank else sample.image
            result = model.generate(
                sample.prompt, [image], policy=policy, max_new_tokens=64, return_placements=True
            )
            total += score(sample, result.text)
            shares.append(result.stats.kv_bytes / result.stats.kv_bytes_dense)
            placed = result.placements[0]
            image_shares.append(float((placed.core | placed.parked).mean()))
        scores[task] = round(total / count, 4)
        print(f"{policy}: {task} {scores[task]}", file=sys.stderr)
    return {
        "policy": policy + (" (blank image)" if blank else ""),
        "scores": scores,
        "kv": round(float(np.mean(shares)), 4),
        "image_kv": round(float(np.mean(image_shares)), 4),
    }


def table(rows: list[dict[str, object]]) -> str:
    """A Markdown table; shares of the dense score in brackets."""
    dense = rows[0]["scores"]
    lines = [
        "| policy | caption F1 | vqa exact | ocr characters | image KV | total KV |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row['scores'][task]:.3f} ({row['scores'][task] / dense[task]:.2f})" for task in TASKS
        ]
        lines.append(
            f"| `{row['policy']}` | {' | '.join(cells)} | {row['image_kv']:.0%} | {row['kv']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--policies", nargs="*", default=list(POLICIES))
    parser.add_argument("--jobs", type=int, default=2, help="policies measured at once")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", action="store_true", help="print a Markdown table as well")
    args = parser.parse_args()
    runs = [(policy, False) for policy in args.policies]
    if "dense" in args.policies:
        runs.append(("dense", True))
    with ProcessPoolExecutor(args.jobs) as pool:
        started = [
            pool.submit(measure, args.package, policy, args.samples, blank)
            for policy, blank in runs
        ]
        rows = [run.result() for run in started]
    report = {
        "model": load_package(args.package).manifest.model,
        "samples_per_task": args.samples,
        "machine": f"{platform.machine()}, {platform.system()}",
        "date": time.strftime("%Y-%m-%d"),
        "policies": rows,
    }
    text = json.dumps(report, indent=2)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    if args.table:
        print(table(rows))


if __name__ == "__main__":
    main()

"""What scripts share that measure avl-tiny on its held-out samples: options, package and record."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from avl_export.cli import main as avl_export
from avl_runtime.bench.surroundings import machine
from places import in_folder

SURE = 1.96  # standard errors to either side: 95 %
Scores = Mapping[str, Sequence[float]]  # of samples, by task


def asked(about: str | None, count: int, arguments: Sequence[str] | None) -> argparse.Namespace:
    """`samples` and `json` of a command line.

    Args:
        about: the script's docstring, whose first line `--help` shows.
        count: of samples of each task, if none is given.
        arguments: None for those of this process.
    """
    parser = argparse.ArgumentParser(
        description=(about or "").partition("\n")[0], allow_abbrev=False
    )
    told = f"of each task (default: {count})"
    parser.add_argument("--samples", type=at_least_two, default=count, help=told)
    parser.add_argument("--json", type=in_folder)
    return parser.parse_args(arguments)


def at_least_two(text: str) -> int:
    """A whole number above 1, as one sample has no interval."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 2, found {text!r}")
    return int(text)


@contextmanager
def tiny(*options: str) -> Iterator[Path]:
    """A package of avl-tiny, gone behind it; exits where it cannot be exported."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "tiny.avl")
        if avl_export(["--model", "avl-tiny", "--out", str(out), "--no-check", *options]):
            sys.exit("expected avl-tiny to be exported, found an error")
        yield out


def record(parsed: argparse.Namespace, found: Mapping[str, Any]) -> dict[str, Any]:
    """What was found with the machine and the count of samples; written to `--json` if given."""
    report = {**machine(), "samples": parsed.samples, **found}
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def means(scores: Scores) -> dict[str, float]:
    """By task."""
    return {task: round(float(np.mean(found)), 4) for task, found in scores.items()}


def apart(scores: Scores, base: Scores) -> tuple[dict[str, float], dict[str, float]]:
    """How much better the same samples are, and the half of a 95 % interval, by task."""
    gains = {task: np.subtract(found, base[task]) for task, found in scores.items()}
    halves = {
        task: round(SURE * float(one.std(ddof=1)) / len(one) ** 0.5, 4)
        for task, one in gains.items()
    }
    return {task: round(float(one.mean()), 4) for task, one in gains.items()}, halves


def changes(gains: Mapping[str, float], halves: Mapping[str, float]) -> str:
    """What `apart` found, as documents say it."""
    return ", ".join(f"{task} {one:+.3f} ± {halves[task]:.3f}" for task, one in gains.items())

#!/usr/bin/env python
"""What it costs to choose image tokens before the decoder, beside reading all of them.

    .venv/bin/python scripts/choosing_cost.py --kind int4 --repeats 3 \
        --json benchmarks/choosing-cost.json

A package of S1, five pictures of 576 tokens in front of a question, whose features are known. In
each round the prompt is read under dense attention and under every policy, each keeping the same
share of the tokens. Beside that the choice alone is timed, and that among the 2,880 tokens as if
they were one picture's, which is more work: each token is compared with all others. So it is among
all frames of a video, but for what goes by frames (FRAMES): of these the choice is timed once more,
with the pictures as frames of one video. S1 reads none, so the prompt is that of the pictures.

CAAC's calibration, which reads a prompt with white pictures three times, is timed by the prompt's
first reading with pictures of sizes that have not been there, and by the next one, beside dense
attention's by the same package: one exported with --restore, whose attention can be biased.
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

import numpy as np

from avl_plugins.cpu.sharing import on_threads
from avl_plugins.errors import AvlError
from avl_plugins.policies import Picture, View, parse
from avl_runtime import LVLM
from avl_runtime.bench.idle import wait_idle
from avl_runtime.bench.surroundings import machine
from avl_runtime.generate.prefill import finished
from avl_runtime.prompts.processor import Prompt
from avl_runtime.requests.loaded import Loaded
from bench_all import ROOT, Record, at_least_one, package
from places import in_folder, some_folder
from ratios import ratios
from speed_worker import noise, words

POLICIES = ("divprune", "mmtok", "cdpruner", "dart", "pool", "uniform", "random:of=embedded")
LOOKING = (
    "visionzip",
    "vispruner",
    "hiprune",
    "scope",
    "holov",
)  # where the package tells attention
FRAMES = ("evs", "pool")
CALIBRATED = "caac:below=0,beta=0.7"
SIDE = 336  # pixels of a picture
FEW = 0.01  # of a prompt: choices that take less are told together


def measure(
    model: LVLM, policies: Sequence[str], keep: str, pictures: int, rounds: int, idle_wait: float
) -> list[dict[str, Any]]:
    """Rounds, after one that does not count: seconds of prompts and choices, by policy.

    Raises:
        AvlError: the machine is busy, or a request cannot be run.
    """
    images, question = [noise(SIDE, number) for number in range(pictures)], words(16, 0)
    loaded = model.loaded
    prompt = loaded.processor.encode(question, images)
    asked = loaded.embedding.lookup(loaded.processor.asked_ids(prompt))
    features = finished(loaded.features.encoding(prompt.media))
    rows = np.concatenate([np.asarray(one.rows, np.float32) for one in features])
    attention = np.concatenate([one.attention for one in features])
    grid = prompt.media[0].cells.places
    tall = np.concatenate([grid] * pictures, 1)
    numbers = np.repeat(np.arange(pictures), grid.shape[1])
    tall[1] += numbers * (grid[1].max() + 1)
    frames = np.concatenate([grid] * pictures, 1)
    frames[0] += numbers
    whole = Picture(rows, asked, tall, 0, False, attention)
    video = Picture(rows, asked, frames, 0, True, attention)
    found = []
    for _ in range(1 + rounds):
        wait_idle(idle_wait)
        one: dict[str, Any] = {"prompt": {}, "chosen": {}, "video": {}}
        for policy in ("dense", *policies):
            one["prompt"][policy] = read(loaded, policy, prompt)
        one["chosen"] = {policy: chosen(policy, whole) for policy in policies}
        one["video"] = {policy: chosen(policy, video) for policy in of_frames(keep)}
        found.append(one)
    return found[1:]


def calibrate(model: LVLM, pictures: int, rounds: int, idle_wait: float) -> list[dict[str, float]]:
    """Rounds, after one that does not count: seconds of a prompt, dense and calibrated twice.

    Raises:
        PolicyError: the package's attention cannot be biased.
    """
    loaded, found = model.loaded, []
    loaded.check(parse(CALIBRATED))
    for number in range(1 + rounds):
        wait_idle(idle_wait)
        # Of other sizes each time, as what was found is remembered by them.
        prompt = loaded.processor.encode(words(20), [noise(SIDE + 1 + number, 0)] * pictures)
        dense = read(loaded, "dense", prompt)
        first, following = (read(loaded, CALIBRATED, prompt) for _ in range(2))
        found.append({"dense": dense, "first": first, "next": following})
    return found[1:]


def read(loaded: Loaded, policy: str, prompt: Prompt) -> float:
    """Seconds in which a prompt is read."""
    begun = time.perf_counter()
    finished(loaded.prefill(loaded.sequence(parse(policy)), prompt))
    return time.perf_counter() - begun


def of_frames(keep: str) -> list[str]:
    return [f"{name}:keep={keep}" for name in FRAMES]


def chosen(policy: str, picture: Picture) -> float:
    """Seconds that a policy takes to choose among a picture's tokens."""
    (action,) = parse(policy).actions()
    tokens = len(picture.features)
    begun = time.perf_counter()
    view = View(np.arange(tokens), np.zeros(tokens, np.float32), 0, None, 1, picture)
    action.merged(view)
    return time.perf_counter() - begun


def figures(rounds: Sequence[Mapping[str, Any]], policy: str) -> dict[str, Any]:
    """Of all rounds: a policy's prompt, and its choice in one picture, over the dense prompt."""
    return {
        "prompt_ms": round(1e3 * statistics.median(one["prompt"][policy] for one in rounds), 1),
        "choice_ms": round(1e3 * statistics.median(one["chosen"][policy] for one in rounds), 1),
        "prompt": ratios([(one["prompt"]["dense"], one["prompt"][policy]) for one in rounds]),
        "choice": ratios([(one["prompt"]["dense"], one["chosen"][policy]) for one in rounds]),
    }


def of_video(rounds: Sequence[Mapping[str, Any]], policy: str) -> dict[str, Any]:
    """Of all rounds: the choice among a video's tokens, and that over the dense prompt."""
    times = [one["video"][policy] for one in rounds]
    return {
        "choice_ms": round(1e3 * statistics.median(times), 1),
        "choice": ratios([(one["prompt"]["dense"], one["video"][policy]) for one in rounds]),
    }


def of_calibration(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Of all rounds: a calibrated prompt's first reading and the next, over the dense one."""
    return {
        name: ratios([(one["dense"], one[name]) for one in rounds]) for name in ("first", "next")
    }


def sentence(record: Mapping[str, Any]) -> str:
    """The figures as the documents quote them."""
    policies, video, tokens = record["policies"], record["video"], 576 * record["pictures"]
    shares = {_name(policy): one["choice"]["median"] for policy, one in policies.items()}
    told = sorted((name for name in shares if shares[name] >= FEW), key=lambda name: shares[name])
    rest = max((share for name, share in shares.items() if name not in told), default=0)
    frames = {_name(policy): one["choice"]["median"] for policy, one in video.items()}
    most = max(one["prompt"]["median"] for one in policies.values())
    found = (
        f"S1 in INT4, {record['pictures']} pictures of 576 tokens, {record['machine']['cpu']} "
        f"([JSON](benchmarks/choosing-cost.json)): where {float(record['keep']):.0%} of the tokens "
        f"stay, no prompt takes more than {most:.2f} of the time of dense attention's "
        f"{record['dense_ms'] / 1e3:.1f} s, the choice included. Of that time choosing among "
        f"{tokens:,} tokens as one picture's takes {_listed(shares, told)}, and at most {rest:.1%} "
        f"with the others; among as many of a video's frames {_listed(frames, sorted(frames))}."
    )
    if calibrated := record.get("calibrated"):
        found += (
            f" The first prompt of `{calibrated['policy']}` with pictures of new sizes takes "
            f"{calibrated['first']['median']:.2f} of dense attention's time, the next "
            f"{calibrated['next']['median']:.2f}."
        )
    return found


def _name(policy: str) -> str:
    return policy.partition(":")[0]


def _listed(shares: Mapping[str, float], names: Sequence[str]) -> str:
    return ", ".join(f"{shares[name]:.1%} with `{name}`" for name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parsed = parser().parse_args(arguments)
    made = biased = parsed.package
    if made is None:
        parsed.folder.mkdir(parents=True, exist_ok=True)
        record = Record("S1", (), (), kind=parsed.kind)
        made, biased = (
            package(parsed.folder, record, parsed.kind, option)
            for option in ("--vision-attention", "--restore")
        )
    try:
        with on_threads(parsed.threads):
            model = LVLM.load(biased, "ort-cpu", threads=parsed.threads)
            evened = calibrate(model, parsed.pictures, parsed.repeats, parsed.idle_wait)
            model.close()
            model = LVLM.load(made, "ort-cpu", threads=parsed.threads)
            names = POLICIES + (LOOKING if model.package.manifest.vision_attention else ())
            policies = [f"{name}{',' if ':' in name else ':'}keep={parsed.keep}" for name in names]
            rounds = measure(
                model, policies, parsed.keep, parsed.pictures, parsed.repeats, parsed.idle_wait
            )
    except AvlError as error:
        sys.exit(f"choosing_cost: {error}")
    dense = statistics.median(one["prompt"]["dense"] for one in rounds)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "pictures": parsed.pictures,
        "keep": parsed.keep,
        "dense_ms": round(1e3 * dense, 1),
        "policies": {policy: figures(rounds, policy) for policy in policies},
        "calibrated": {"policy": CALIBRATED, **of_calibration(evened)},
        "video": {policy: of_video(rounds, policy) for policy in of_frames(parsed.keep)},
    }
    print(f"dense: {report['dense_ms']} ms")
    for policy, one in report["policies"].items():
        print(
            f"{policy}: the prompt takes {one['prompt']['median']:.3f} of dense attention's time, "
            f"choosing from all as one picture {one['choice']['median']:.4f}"
        )
    for policy, one in report["video"].items():
        print(f"{policy}: choosing from all as one video {one['choice']['median']:.4f}")
    calibrated = report["calibrated"]
    print(
        f"{CALIBRATED}: the first prompt takes {calibrated['first']['median']:.3f} of dense "
        f"attention's time, the next {calibrated['next']['median']:.3f}"
    )
    if parsed.json:
        parsed.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = found.add_argument
    add("--package", type=Path, help="in place of S1's: of a make_random.py's, with --restore")
    add("--folder", type=some_folder, default=ROOT / "build/bench", help="where S1 is kept")
    add("--kind", default="fp32", help="how S1 computes, or int4 (default: fp32)")
    add("--pictures", type=at_least_one, default=5, help="of 336 pixels each (default: 5)")
    add("--keep", default="0.1111", help="share of the tokens that stays (default: 0.1111)")
    add("--threads", type=at_least_one, default=os.cpu_count(), help="default: all processors")
    add("--repeats", type=at_least_one, default=5, help="rounds that count (default: 5)")
    add(
        "--idle-wait",
        type=float,
        default=60,
        help="seconds to wait for an idle machine, 0 to measure on a busy one (default: 60)",
    )
    add("--json", type=in_folder)
    return found


if __name__ == "__main__":
    sys.exit(main())

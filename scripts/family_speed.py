#!/usr/bin/env python
"""Whole requests with a picture to models of full size with random weights, beside other libraries.

    .venv/bin/python scripts/family_speed.py --prepare
    .venv/bin/python scripts/family_speed.py --peer-python build/peers/bin/python

Counted from the opened picture of 448 x 448 pixels and a short question: resizing, tokens, the
vision tower, the prompt and the first token; then the other ones, greedily, up to a fixed number.
avl runs packages in INT4, the matrix of logits and the vision tower too, with rows of the cache in
8 bits; transformers the checkpoint in bf16 as it is stored, with its own image processor and the
same token ids. llama.cpp, where `--peer-python` names an environment that has it, runs the GGUF
files of its own converter: the decoder in Q4_0, the output matrix in Q6_K, the vision tower in
Q8_0, rows of the cache in fp16, with flash attention and without. Answers of random weights have
near ties, so that texts are not compared. In every round all are asked about the same picture,
which is new to them.

`--prepare` only makes checkpoints and packages, some 8 GB in --folder; without it they are made
where they are missing, measured, and removed unless `--keep`. Writes benchmarks/family-speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError
from avl_runtime.bench.against import interpreter
from avl_runtime.bench.boot import foreign_command
from avl_runtime.cli.lists import some_name
from avl_runtime.machine.resources import cores
from avl_runtime.package.package import load_package
from avl_runtime.prompts.processor import Processor
from bench_all import ROOT, at_least_one
from make_random import write_known
from places import in_folder, records, some_folder
from whole_requests import CHAIN, INT4, WORKER, Case, export, measure, requests

MODELS = ("qwen3-vl-2b", "smolvlm-256m", "internvl3.5-1b")
POLICIES = ("dense", "fastv", "avl", CHAIN)
PEER = "transformers bf16"
PEER_WORKER = "avl_runtime.bench.peers.transformers_vlm_peer"
LLAMA = {"llama.cpp Q4_0": False, "llama.cpp Q4_0 flash": True}
LLAMA_WORKER = "avl_runtime.bench.peers.llama_vlm_peer"
# At most, of a peer's time, under dense.
FIRST, TOKEN = 0.7, 0.8
SPACE = 2  # bytes on disk for each of a checkpoint, its package included
SIZE = (448, 448)


def case_of(starts: int, repeats: int, new_tokens: int) -> Case:
    """What is asked of each model."""
    return Case(
        preset="random",
        options=INT4,
        policies=POLICIES,
        weights="bf16",
        rows="bf16",
        pictures=1,
        kv="int8",
        starts=starts,
        repeats=repeats,
        new_tokens=new_tokens,
        size=SIZE,
    )


def prepare(alias: str, folder: Path, case: Case) -> tuple[Path, Path]:
    """A model's checkpoint and package, made if they are not there.

    Raises:
        SystemExit: there is no room for them, or what was written is not whole.
    """
    source, package = folder / f"random-{alias}", folder / f"random-{alias}.avl"
    if not source.exists():
        made = folder / f"random-{alias}.part"
        shutil.rmtree(made, ignore_errors=True)
        written = write_known(made, alias)
        stored = sum(512 * path.stat().st_blocks for path in made.glob("*.safetensors"))
        free = shutil.disk_usage(folder).free
        if stored < written or free < (SPACE - 1) * written:
            shutil.rmtree(made)
            sys.exit(
                f"{alias}: expected room for {SPACE * written / 1e9:.1f} GB in {folder}, found "
                f"{stored / 1e9:.1f} GB written and {free / 1e9:.1f} GB free; name another --folder"
            )
        made.rename(source)
    export(case, source, package)
    return source, package


def candidates(
    source: Path, package: Path, case: Case, dtype: str = "bf16", python: str | None = None
) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """How each is started, and what it is told beside what all are told.

    Args:
        python: the interpreter that has llama.cpp, which is left out without one.
    """
    job = {"package": str(package), "kv": case.kv, "compute": "auto"}
    own = [sys.executable, "-m", WORKER]
    found: dict[str, tuple[list[str], dict[str, Any]]] = {
        policy: (own, {**job, "policy": policy}) for policy in case.policies
    }
    peer = [sys.executable, "-m", PEER_WORKER]
    found[PEER] = (peer, {"checkpoint": str(source), "dtype": dtype})
    if python is not None:
        for name, flash in LLAMA.items():
            told = {"checkpoint": str(source), "weights": "q4_0", "flash": flash}
            found[name] = (foreign_command(python, LLAMA_WORKER), told)
    return found


def asked(package: Path) -> Any:
    """What makes the rounds of `measure`, with the token ids of each prompt."""
    processor = Processor.from_package(load_package(package))

    def ask(case: Case, place: Path) -> list[list[dict[str, Any]]]:
        rounds = requests(case, place)
        for one in (one for requested in rounds for one in requested):
            ids = processor.encode(one["prompt"], [one["picture"]]).input_ids
            one["input_ids"] = ids.tolist()
        return rounds

    return ask


def ratios(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of each of avl's policies: its medians over those of peers, and over dense's.

    `peer` is transformers, `llama` the faster one of llama.cpp's two, each time by itself.
    """
    rows = {row["name"]: row for row in report["candidates"]}
    others = {"peer": [PEER], "llama": [name for name in LLAMA if name in rows], "dense": ["dense"]}

    def over(name: str, others: Sequence[str], what: str) -> float:
        best = min(rows[other][what]["median"] for other in others)
        return round(float(rows[name][what]["median"] / best), 3)

    return {
        name: {
            f"{part}_over_{word}": over(name, names, f"{part}_ms")
            for word, names in others.items()
            if names
            for part in ("first", "token")
        }
        for name in rows
        if name != PEER and name not in LLAMA
    }


def table(alias: str, report: Mapping[str, Any]) -> str:
    """A model as Markdown."""
    peers = {"peer": "transformers'", "llama": "llama.cpp's"}
    told = [word for word in peers if f"first_over_{word}" in report["ratios"]["dense"]]
    of = "".join(f"of {peers[word]} | " for word in told)
    lines = [
        f"| {alias}: {report['prompt_tokens']} tokens of prompt | first token ms | {of}"
        f"a token ms | {of}peak MiB |",
        "|---|---|---|---|" + "---|---|" * len(told),
    ]
    for row in report["candidates"]:
        found = report["ratios"].get(row["name"], {})
        cells = [row["name"]]
        for part, places in (("first", 0), ("token", 1)):
            cells.append(f"{row[f'{part}_ms']['median']:.{places}f}")
            cells += [str(found.get(f"{part}_over_{word}", "")) for word in told]
        cells.append(f"{row['peak_rss_bytes'] / 2**20:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    add("--folder", type=some_folder, default=ROOT / "build/family")
    add("--prepare", action="store_true", help="make checkpoints and packages, and measure nothing")
    add("--keep", action="store_true", help="do not remove them")
    add(
        "--peer-python",
        type=some_name,
        help="that scripts/peers.sh prints; without it llama.cpp is left out",
    )
    add("--threads", type=at_least_one, default=cores(), help="default: all processors")
    add("--starts", type=at_least_one, default=2, help="of every process (default: 2)")
    add("--repeats", type=at_least_one, default=3, help="rounds of a start (default: 3)")
    add("--new-tokens", type=at_least_one, default=32)
    add("--idle-wait", type=float, default=60, help="seconds; 0 measures on a busy machine")
    add("--json", type=in_folder, default=ROOT / "benchmarks/family-speed.json")
    parsed = parser.parse_args(arguments)
    case = case_of(parsed.starts, parsed.repeats, parsed.new_tokens)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parsed.folder.mkdir(parents=True, exist_ok=True)
    report = records(parsed.json)
    try:
        python = parsed.peer_python and interpreter("llama.cpp", parsed.peer_python)
    except AvlError as error:
        sys.exit(f"family_speed: {error}")

    def tell(line: str) -> None:
        print(f"family_speed: {line}", file=sys.stderr, flush=True)

    for alias in parsed.models:
        source, package = prepare(alias, parsed.folder, case)
        if parsed.prepare:
            continue
        try:
            started = candidates(source, package, case, python=python)
            found = measure(case, started, parsed.threads, parsed.idle_wait, tell, asked(package))
        except AvlError as error:
            sys.exit(f"family_speed: {alias}: {error}")
        found["targets"] = {"first_over_peer": FIRST, "token_over_peer": TOKEN}
        report[alias] = {**found, "model": alias, "ratios": ratios(found)}
        print(table(alias, report[alias]), flush=True)
        parsed.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if not parsed.keep:
            shutil.rmtree(source)
            shutil.rmtree(package)


if __name__ == "__main__":
    main()

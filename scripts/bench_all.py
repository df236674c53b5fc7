#!/usr/bin/env python
"""Make every record of speed that the documents quote, and compare them with the targets.

    ./scripts/peers.sh build/peers
    .venv/bin/python scripts/bench_all.py --peer-python build/peers/bin/python

Writes random-weight checkpoints (make_random.py) and packages into --folder, once, measures each
shape with avl-bench into benchmarks/bench-NAME.json, whole requests with whole_requests.py and
attention alone into attention-part.json, and sums up in bench-targets.json, with what
side_by_side.py has measured. Takes hours on two idle cores. Without --peer-python all peers but
transformers are left out. `--only peers-int4,peers-fp16` measures S1 beside all of them; `--only
try` a small decoder in seconds, to see that each peer works: its record goes to --folder and is
compared with nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avl_export.checkpoint.aliases import HUB_IDS
from bench_targets import AVL, CHAIN, LONG, TIGHT, table, targets
from make_random import write_known
from peer_targets import FILES

ROOT = Path(__file__).parents[1]
FASTV = "fastv"
LARGE = ("--visual-tokens", "2880", "--text-tokens", "128", "--new-tokens", "128")
TEXT = ("--visual-tokens", "0", "--text-tokens", "1024", "--new-tokens", "128")
TORCH, GENAI = "transformers", "onnxruntime-genai"
TEXT_PEERS = ("openvino", "llama.cpp", GENAI)


@dataclass(frozen=True, slots=True)
class Record:
    """One call of avl-bench.

    Attributes:
        preset: of make_random, or an alias; `stored`: how its weights are.
        kind: int4, or what it computes in; `beside` the same of the package measured with it.
        asked: further arguments.
        starts: how often every candidate's process is started.
        repeats: rounds of a start that count, after one that does not.
        off: variables of the environment that keep all from using AMX.
    """

    preset: str
    policies: Sequence[str]
    asked: Sequence[str]
    against: Sequence[str] = ()
    stored: str = "fp32"
    kind: str = "fp32"
    beside: str | None = None
    starts: int = 1
    repeats: int = 3
    off: Mapping[str, str] = field(default_factory=dict)


OF_FP32 = {
    "s1": Record(
        "S1", ("dense", FASTV, AVL, TIGHT, CHAIN), LARGE, (TORCH, GENAI), starts=6, repeats=2
    ),
    "s1-batch4": Record(
        "S1", ("dense", AVL, TIGHT), (*LARGE[:-1], "64", "--batch", "4"), starts=4, repeats=2
    ),
    "s2": Record("S2", ("dense", AVL), LARGE, (TORCH, GENAI)),
    "s3": Record("S3", ("dense",), TEXT, (TORCH, GENAI), starts=5, repeats=3),
}
RECORDS = {
    **OF_FP32,
    **{
        f"{name[:2]}-fp16{name[2:]}": replace(record, stored="fp16")
        for name, record in OF_FP32.items()
    },
    "s1-int4": Record("S1", ("dense", AVL, TIGHT, CHAIN), LARGE, kind="int4", starts=5, repeats=3),
    "peers-int4": Record(
        "S1",
        ("dense", FASTV, AVL, CHAIN),
        (*LARGE, "--kv", "fp32,int8"),
        TEXT_PEERS,
        stored="fp16",
        kind="int4",
        starts=3,
        repeats=2,
    ),
    # Of OpenVINO only its fp32 counts there: it uses no AMX for that in any case.
    "peers-int4-no-amx": Record(
        "S1",
        ("dense",),
        (*LARGE, "--kv", "fp32,int8"),
        TEXT_PEERS[:1],
        stored="fp16",
        kind="int4",
        starts=3,
        repeats=2,
        off={"AVL_AMX": "off"},
    ),
    "peers-fp16": Record(
        "S1", ("dense", FASTV, AVL), LARGE, TEXT_PEERS, stored="fp16", starts=3, repeats=2
    ),
    "peers-bf16": Record(
        "S1",
        ("dense",),
        (*LARGE, "--compute", "bf16"),
        TEXT_PEERS[:1],
        stored="fp16",
        starts=3,
        repeats=2,
    ),
    "s1-computed": Record("S1", ("dense",), LARGE, stored="fp16", beside="fp16"),
    "deep": Record("deep", ("dense", FASTV), (*LARGE[:-1], "8"), (TORCH,)),
    "half-billion": Record(
        "half-billion",
        ("dense",),
        ("--visual-tokens", "0", "--text-tokens", "64", "--new-tokens", "32"),
        beside="int4",
    ),
    "qwen3.5": Record(
        "qwen3.5-0.8b",
        ("dense",),
        ("--visual-tokens", "0", "--text-tokens", "3008", "--new-tokens", "64"),
        (TORCH,),
        stored="fp16",
        repeats=1,
    ),
    "long-text": Record(
        "S3",
        ("dense", LONG),
        ("--visual-tokens", "576", "--text-tokens", "64", "--new-tokens", "2100"),
        repeats=2,
    ),
}
TRIALS = {
    "try": Record(
        "small",
        ("dense", FASTV, AVL),
        ("--visual-tokens", "64", "--text-tokens", "32", "--new-tokens", "8"),
        TEXT_PEERS,
        stored="fp16",
        kind="int4",
        repeats=1,
    )
}
REQUESTS, ATTENTION = "requests", "attention"  # whole_requests.py, attention_part.py
ALL = (*RECORDS, REQUESTS, ATTENTION)
KNOWN = (*ALL, *TRIALS)


def checkpoint(folder: Path, preset: str, stored: str) -> Path:
    """Random weights of a preset or alias, stored in fp32 or fp16; made if they are not there."""
    made = folder / f"{preset}-{stored}"
    if not made.exists() and preset in HUB_IDS:
        write_known(made, preset, dtype=stored)
    elif not made.exists():
        run(ROOT / "scripts/make_random.py", made, "--preset", preset, "--dtype", stored)
    return made


def package(folder: Path, record: Record, kind: str, *more: str) -> Path:
    """A package of a record's checkpoint, made if it is not there.

    Args:
        more: options of avl-export, without values.
    """
    source = checkpoint(folder, record.preset, record.stored)
    made = folder / f"{source.name}-{''.join([kind, *more])}.avl"
    if not made.exists():
        options = ["--model", str(source), "--out", str(made), "--no-check", *more]
        if kind == "int4":  # of a small model the head is a good part of a step's bytes
            options += ["--quantize", kind, "--quantize-also", "lm_head"]
        else:
            options += ["--dtype", kind]
        run("-m", "avl_export.cli", *options)
    return made


def run(*command: object, environment: Mapping[str, str] | None = None) -> None:
    """Run Python; ends with its status if it fails.

    Args:
        environment: variables beside those of this process.
    """
    done = subprocess.run(
        [sys.executable, *map(str, command)], check=False, env=os.environ | dict(environment or {})
    )
    if done.returncode:
        sys.exit(done.returncode)


def measure_requests(parsed: argparse.Namespace) -> None:
    """Whole requests, to their file."""
    command = ["--folder", parsed.folder, "--idle-wait", parsed.idle_wait]
    command += ["--json", parsed.out / "whole-requests.json"]
    for name in ("peer_python", "threads", "repeats"):
        if getattr(parsed, name):
            command += [f"--{name.replace('_', '-')}", getattr(parsed, name)]
    print(f"\n## {REQUESTS}\n", flush=True)
    run(ROOT / "scripts/whole_requests.py", *command)


def measure(name: str, parsed: argparse.Namespace) -> dict[str, Any]:
    """One record, from its package to its file."""
    record = (RECORDS | TRIALS)[name]
    out = (parsed.folder if name in TRIALS else parsed.out) / f"bench-{name}.json"
    made = package(parsed.folder, record, record.kind)
    command = [made, "--policies", ",".join(record.policies), *record.asked]
    command += ["--starts", record.starts, "--repeats", parsed.repeats or record.repeats]
    command += ["--idle-wait", parsed.idle_wait]
    if record.beside:
        command += ["--beside", package(parsed.folder, record, record.beside)]
    peers = [peer for peer in record.against if peer == TORCH or parsed.peer_python]
    if peers:
        source = checkpoint(parsed.folder, record.preset, record.stored)
        command += ["--against", ",".join(peers), "--checkpoint", source]
    if parsed.peer_python:
        command += ["--peer-python", parsed.peer_python]
    if parsed.threads:
        command += ["--threads", parsed.threads]
    print(f"\n## {name}\n", flush=True)
    begun = time.monotonic()
    run("-m", "avl_runtime.cli.bench", *command, "--json", out, environment=record.off)
    print(f"bench_all: {name} took {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def records_of(text: str) -> list[str]:
    """Names of records, before any is measured; those that are only tried come alone."""
    names = list(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    for name in names:
        if name not in KNOWN:
            raise argparse.ArgumentTypeError(f"expected {', '.join(KNOWN)}, found {name!r}")
    if not names or (set(names) & set(TRIALS) and not set(names) <= set(TRIALS)):
        raise argparse.ArgumentTypeError(
            f"expected records, or {', '.join(TRIALS)} alone, found {text!r}"
        )
    return names


def at_least_one(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--only",
        type=records_of,
        default=list(ALL),
        metavar="RECORDS",
        help=f"of {', '.join(KNOWN)} (default: all but try)",
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build/bench")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument(
        "--repeats", type=at_least_one, help="rounds of each start (default: the record's own)"
    )
    parser.add_argument("--threads", type=at_least_one)
    parser.add_argument("--idle-wait", type=float, default=60)
    parsed = parser.parse_args(arguments)
    parsed.folder.mkdir(parents=True, exist_ok=True)
    parsed.out.mkdir(parents=True, exist_ok=True)
    attention = parsed.out / "attention-part.json"
    for name in parsed.only:
        if name == REQUESTS:
            measure_requests(parsed)
        elif name == ATTENTION:
            command = ["--json", attention, "--idle-wait", parsed.idle_wait]
            run(ROOT / "scripts/attention_part.py", *command)
        else:
            measure(name, parsed)
    if set(parsed.only) <= set(TRIALS):
        return
    files = {name: parsed.out / f"bench-{name}.json" for name in RECORDS}
    there = {name: json.loads(p.read_text()) for name, p in files.items() if p.is_file()}
    others = {name: parsed.out / f"{name}.json" for name in FILES}
    beside = {name: json.loads(p.read_text()) for name, p in others.items() if p.is_file()}
    alone = json.loads(attention.read_text()) if attention.is_file() else None
    found = targets(there, alone, beside)
    text = json.dumps({"date": time.strftime("%Y-%m-%d"), "targets": found}, indent=2)
    (parsed.out / "bench-targets.json").write_text(text + "\n", encoding="utf-8")
    print(f"\n{table(found)}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Greedy tokens of every policy, here and in another checkout: the same ones, or where they differ.

    .venv/bin/python scripts/greedy_tokens.py ../old . --json benchmarks/greedy-tokens.json
    .venv/bin/python scripts/greedy_tokens.py . --recorded benchmarks/greedy-tokens.json

A checkout is a folder with a virtual environment .venv, or a Python that it is installed in; make
one of an older commit with

    git worktree add --detach ../old 8bc99d2 && python3 -m venv ../old/.venv
    ../old/.venv/bin/pip install -e '../old[export,video]' -c ../old/constraints.txt

Each exports the models with its own code: avl-tiny, and random-weight checkpoints of other families
(make_random.py), which can be shown videos and whose replies are long. Arguments behind `--` go to
both exporters, as `-- --quantize int4`. With AVL_CPU_KERNELS=off in the environment neither uses
its compiled kernels. Ends with 1 at a difference in tokens and tells the first one; how far logits
differ is told, and in the JSON. Beside each reply's digest stands the least distance of its largest
logit from the second, which tells a tie from a fault.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greedy_requests import OF_FAMILIES, POLICIES, REQUESTS, VIDEOS
from make_random import write
from measured import split_arguments
from random_config import Shape
from trees import SCRIPTS, Tree

ROOT = SCRIPTS.parent
PICTURES = {name: str(ROOT / f"samples/{name}.png") for name in ("page", "scene")}
TINY = "avl-tiny"
# Families that see videos, and how their placeholders are written.
FAMILIES = {
    "llava_onevision": "<{kind}>",
    "qwen3_vl": "<|vision_start|><|{kind}_pad|><|vision_end|>",
}
# Their random checkpoints have no chat template, which a second turn needs.
TEMPLATE = """
{%- for message in messages %}{{ 'w10 ' if message['role'] == 'user' else 'w11 ' }}
{%- if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'video' %}VIDEO
{%- else %}{{ part['text'] }}{% endif %}
{%- endfor %}{% endif %}{{ ' w12 ' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'w11 ' }}{% endif %}"""
SMALL = Shape(
    hidden=64, intermediate=96, layers=3, heads=4, kv_heads=2, vocabulary=300, vision_hidden=64
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is asked, and how long its replies may get."""

    model: str
    policies: Sequence[str]
    requests: Sequence[str]
    tokens: int
    threads: int


@dataclass(frozen=True, slots=True)
class Said:
    """What one checkout replied: tokens by policy and request, and logits [T, V] of replies."""

    tokens: Mapping[str, Mapping[str, list[list[int]]]]
    logits: Mapping[str, NDArray[np.float32]]

    def logits_of(self, policy: str, request: str) -> list[NDArray[np.float32]]:
        """Those of a request's replies; none where it was not asked for them."""
        replies = range(len(self.tokens[policy][request]))
        names = [f"{policy}|{request}|{number}" for number in replies]
        return [self.logits[name] for name in names if name in self.logits]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token in which a reply differs; None behind the end of the shorter one."""

    model: str
    policy: str
    request: str
    reply: int
    place: int
    expected: int | None
    found: int | None

    def __str__(self) -> str:
        return (
            f"{self.model}, {self.policy}, {self.request}: reply {self.reply}, token {self.place}: "
            f"expected {self.expected}, found {self.found}"
        )


def replies(tree: Tree, package: Path, asked: Asked) -> Said:
    """Ask a package with a checkout's own runtime.

    Raises:
        SystemExit: its worker fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "package": str(package),
            "policies": asked.policies,
            "requests": asked.requests,
            "pictures": PICTURES,
            "words": "plain" if asked.model == TINY else "numbered",
            "tokens": asked.tokens,
            "threads": asked.threads,
            "logits": str(Path(folder, "logits.npz")),
        }
        path = Path(folder, "job.json")
        path.write_text(json.dumps(job), encoding="utf-8")
        printed = tree.run(SCRIPTS / "greedy_requests.py", str(path))
        with np.load(Path(folder, "logits.npz")) as arrays:
            return Said(json.loads(printed), dict(arrays))


def differences(
    model: str,
    expected: Mapping[str, Mapping[str, Sequence[Sequence[int]]]],
    found: Mapping[str, Mapping[str, Sequence[Sequence[int]]]],
) -> list[Difference]:
    """The first different token of every reply that differs; only of what both were asked."""
    wrong = []
    for policy, requests in found.items():
        for request, said in requests.items():
            if request not in expected.get(policy, {}):
                continue
            for reply, (before, now) in enumerate(
                zip_longest(expected[policy][request], said, fillvalue=())
            ):
                pairs = enumerate(zip_longest(before, now))
                at = next((place for place, (one, two) in pairs if one != two), None)
                if at is not None:
                    tokens = [row[at] if at < len(row) else None for row in (before, now)]
                    wrong.append(Difference(model, policy, request, reply, at, *tokens))
    return wrong


def record(said: Sequence[Said]) -> dict[str, dict[str, dict[str, Any]]]:
    """By policy and request: tokens and logits of the last checkout, and how far the others' are.

    Args:
        said: of one checkout, or of the older one and this.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for policy, requests in said[-1].tokens.items():
        found[policy] = {}
        for request, tokens in requests.items():
            entry = found[policy][request] = {"tokens": tokens}
            rows = [one.logits_of(policy, request) for one in said]
            if not rows[-1]:
                continue
            entry["logits"] = _digest(rows[-1])
            entry["margin"] = _rounded(min(_margin(one) for one in rows[-1]))
            if len(said) > 1:
                entry["difference"] = _rounded(
                    max(_apart(one, two) for one, two in zip(*rows, strict=True))
                )
    return found


def _digest(logits: Sequence[NDArray[np.float32]]) -> str:
    found = hashlib.sha256()
    for one in logits:
        found.update(np.ascontiguousarray(one).tobytes())
    return found.hexdigest()[:16]


def _margin(logits: NDArray[np.float32]) -> float:
    """The least distance between the largest logit [T, V] and the second."""
    two = np.partition(logits, -2, axis=-1)[:, -2:]
    return float((two[:, 1] - two[:, 0]).min())


def _apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The largest difference in the rows that both have."""
    rows = min(len(one), len(other))
    return float(np.abs(one[:rows] - other[:rows]).max())


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def compact(report: Mapping[str, Any]) -> str:
    """JSON with a request a line."""
    lines = []
    for model, policies in report["models"].items():
        rows = []
        for policy, requests in policies.items():
            said = [f'   "{name}": {_tight(entry)}' for name, entry in requests.items()]
            rows.append(f"  {json.dumps(policy)}: {{\n" + ",\n".join(said) + "}")
        lines.append(f' "{model}": {{\n' + ",\n".join(rows) + "}")
    head = "".join(f'"{k}": {_tight(v)},\n' for k, v in report.items() if k != "models")
    return "{" + head + '"models": {\n' + ",\n".join(lines) + "}}\n"


def _tight(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def write_checkpoint(folder: Path, family: str) -> None:
    """A random-weight checkpoint with a chat template."""
    write(folder, dataclasses.replace(SMALL, family=family))
    shown = {kind: FAMILIES[family].format(kind=kind) for kind in ("image", "video")}
    text = TEMPLATE.replace("IMAGE", shown["image"]).replace("VIDEO", shown["video"])
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def packages(
    trees: Sequence[Tree], models: Sequence[str], folder: Path, options: Sequence[str]
) -> dict[str, list[Path]]:
    """A package of every model from every checkout, made below `folder`."""
    found = {}
    for model in models:
        checkpoint: str | Path = model
        split = "2,4"
        if model != TINY:
            checkpoint, split = folder / model, "2"
            write_checkpoint(folder / model, model)
        found[model] = [
            tree.export(checkpoint, folder / f"{model}-{number}.avl", "--split", split, *options)
            for number, tree in enumerate(trees)
        ]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, compare, tell; returns 1 at a difference in tokens."""
    given, options = split_arguments(arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkouts", nargs="*", default=[sys.executable], help="the older one first (default: this)"
    )
    parser.add_argument("--recorded", type=Path, help="compare with the tokens in this JSON too")
    parser.add_argument("--models", nargs="+", choices=(TINY, *FAMILIES), default=(TINY, *FAMILIES))
    parser.add_argument("--policies", nargs="+", help="default: a list for each model")
    parser.add_argument("--requests", nargs="+", choices=REQUESTS, default=list(REQUESTS))
    parser.add_argument("--tokens", type=int, default=40, help="of a reply, at most (default: 40)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args(given)
    if len(parsed.checkouts) > 2:
        parser.error(f"expected one or two checkouts, found {len(parsed.checkouts)}")
    trees = [Tree.of(one) for one in parsed.checkouts]
    earlier = json.loads(parsed.recorded.read_text()) if parsed.recorded else {"models": {}}
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "commits": [tree.commit for tree in trees],
        "machine": f"{platform.machine()}, {platform.system()}",
        "export": options,
        "compiled_kernels": os.environ.get("AVL_CPU_KERNELS") != "off",
        "threads": parsed.threads,
        "models": {},
    }
    wrong: list[Difference] = []
    with tempfile.TemporaryDirectory() as folder:
        made = packages(trees, parsed.models, Path(folder), options)
        for model in parsed.models:
            asked = Asked(
                model,
                parsed.policies or (POLICIES if model == TINY else OF_FAMILIES),
                [name for name in parsed.requests if model != TINY or name not in VIDEOS],
                parsed.tokens,
                parsed.threads,
            )
            said = [
                replies(tree, package, asked)
                for tree, package in zip(trees, made[model], strict=True)
            ]
            report["models"][model] = found = record(said)
            old = tokens_of(earlier["models"].get(model, {}))
            wrong += differences(model, said[0].tokens, said[-1].tokens)
            wrong += differences(model, old, said[-1].tokens)
            print(summary(model, found), flush=True)
    if parsed.json:
        parsed.json.write_text(compact(report), encoding="utf-8")
    if wrong:
        print(f"{len(wrong)} replies differ, the first: {wrong[0]}")
    return 1 if wrong else 0


def tokens_of(recorded: Mapping[str, Any]) -> dict[str, dict[str, list[list[int]]]]:
    """The tokens in what `record` made."""
    return {
        policy: {request: entry["tokens"] for request, entry in requests.items()}
        for policy, requests in recorded.items()
    }


def summary(model: str, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A line on what was asked and how far logits differ."""
    entries = [entry for requests in found.values() for entry in requests.values()]
    tokens = sum(len(reply) for entry in entries for reply in entry["tokens"])
    apart = [entry["difference"] for entry in entries if "difference" in entry]
    told = f", logits within {max(apart):.2g}" if apart else ""
    return f"{model}: {len(found)} policies, {len(entries)} requests, {tokens} tokens{told}"


if __name__ == "__main__":
    sys.exit(main())

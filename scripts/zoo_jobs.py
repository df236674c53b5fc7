"""What policies lose along a long answer, and over several questions about one picture.

.venv/bin/avl-export --model avl-tiny --vision-attention --split 2,3,4 --out telling.avl
.venv/bin/python scripts/zoo_jobs.py telling.avl --out benchmarks/zoo-jobs.json
.venv/bin/python scripts/documents.py

An answer is dense attention's own of 96 tokens to "Describe the image.", with the end token banned:
behind its natural end, after some 40 tokens, it makes no sense, but all policies are given the same
tokens. Of each: the share of tokens that a policy would have chosen too, and KL(dense || policy) in
nats a token. Questions are asked in one chat; of each the share of right answers.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.evaluate.measure import divergences, forced_logits
from avl_runtime.tasks import samples, scene

SHARE = "0.1111"
POLICIES = (
    "dense",
    *(f"{name}:keep={SHARE}" for name in ("divprune", "cdpruner", "mmtok", "visionzip")),
    f"random:of=embedded,keep={SHARE}",
    f"fastv:keep={SHARE}",
    "pyramiddrop:layer=2,every=1,keep=0.4808",
    f"random:keep={SHARE}",
    f"avl:keep={SHARE}",
    f"avl:keep={SHARE},text=0.6",
    *(f"{name}:keep={SHARE}" for name in ("snapkv", "vlcache")),
    "zipvl:tau=0.65",
    f"random:of=avl,keep={SHARE}",
    f"random:of=cached,keep={SHARE}",
)
TOKENS = 96
PARTS = ((1, 32), (32, 64), (64, 96))  # tokens of an answer; the first is the prompt's
QUESTIONS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the record; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="avl-tiny, as above")
    parser.add_argument("--out", type=Path, required=True, help="the record")
    parser.add_argument("--answers", type=int, default=12, help="long answers (default: 12)")
    parser.add_argument("--pictures", type=int, default=20, help="asked about (default: 20)")
    parsed = parser.parse_args(arguments)
    model = LVLM.load(parsed.package, "ort-cpu")
    record = {
        "model": model.package.manifest.model,
        "answers": parsed.answers,
        "pictures": parsed.pictures,
        "date": time.strftime("%Y-%m-%d"),
        "long": long_answers(model, parsed.answers),
        "turns": turns(model, parsed.pictures),
    }
    parsed.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(long_table(record), turns_table(record), sep="\n\n")
    return 0


def long_answers(model: LVLM, count: int) -> list[dict[str, Any]]:
    """Of every policy agreement and divergence in each part of dense attention's answers."""
    loaded = model.loaded
    agree: dict[str, list[list[float]]] = {policy: [] for policy in POLICIES}
    drift: dict[str, list[list[float]]] = {policy: [] for policy in POLICIES}
    for number, one in enumerate(samples("caption", "held-out", count)):
        print(f"zoo_jobs: answer {number + 1} of {count}", file=sys.stderr)
        dense = model.generate(
            one.prompt,
            [one.image],
            policy="dense",
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            temperature=0,
            return_logits=True,
        )
        assert dense.logits is not None
        prompt = loaded.processor.encode(one.prompt, [one.image])
        for policy in POLICIES:
            logits = forced_logits(loaded, prompt, parse(policy), dense.token_ids)
            apart = divergences(dense.logits, logits)
            same = dense.logits.argmax(1) == logits.argmax(1)
            agree[policy].append([float(same[begin:end].mean()) for begin, end in PARTS])
            drift[policy].append([float(apart[begin:end].mean()) for begin, end in PARTS])
    return [
        {
            "policy": policy,
            "agreement": np.mean(agree[policy], 0).round(4).tolist(),
            "divergence": np.mean(drift[policy], 0).round(4).tolist(),
        }
        for policy in POLICIES
    ]


def turns(model: LVLM, count: int) -> list[dict[str, Any]]:
    """Of every policy the share of right answers to each question about a picture."""
    right: dict[str, list[list[bool]]] = {policy: [] for policy in POLICIES}
    for number in range(count):
        print(f"zoo_jobs: picture {number + 1} of {count}", file=sys.stderr)
        drawn = random.Random(f"zoo-jobs/{number}")
        image, things = scene.draw_scene(drawn, (4, 5, 6), distinct_colors=True)
        asked: dict[str, scene.Question] = {}
        while len(asked) < QUESTIONS:
            question = scene.question(drawn, things)
            asked.setdefault(question.prompt, question)
        for policy in POLICIES:
            chat = model.chat(policy=policy)
            right[policy].append(
                [
                    chat.send(
                        question.prompt,
                        [image] if turn == 0 else [],
                        max_new_tokens=24,
                        temperature=0,
                    ).text.strip()
                    == question.answer
                    for turn, question in enumerate(asked.values())
                ]
            )
    return [
        {"policy": policy, "right": np.mean(right[policy], 0).round(4).tolist()}
        for policy in POLICIES
    ]


def long_table(record: Mapping[str, Any]) -> str:
    """Agreement and divergence along an answer."""
    spans = [f"{begin + 1} to {end}" for begin, end in PARTS]
    heads = ["policy", *(f"same token, {one}" for one in spans), *(f"KL, {one}" for one in spans)]
    rows = [
        [f"{share:.2f}" for share in row["agreement"]] + [f"{kl:.2f}" for kl in row["divergence"]]
        for row in record["long"]
    ]
    return _table(heads, [row["policy"] for row in record["long"]], rows)


def turns_table(record: Mapping[str, Any]) -> str:
    """Right answers, question after question."""
    heads = ["policy", *(f"question {number + 1}" for number in range(QUESTIONS))]
    rows = [[f"{share:.2f}" for share in row["right"]] for row in record["turns"]]
    return _table(heads, [row["policy"] for row in record["turns"]], rows)


def _table(heads: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in zip(names, rows, strict=True):
        lines.append(f"| `{name}` | " + " | ".join(row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

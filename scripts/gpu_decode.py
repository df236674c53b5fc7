#!/usr/bin/env python
"""Check a package's GPU backends against ort-cpu: the same tokens, with and without CUDA graphs.

    python scripts/gpu_decode.py PACKAGE --backends ort-cuda tensorrt-rtx --json FILE

Needs an installation of avl with the backends' extras, a GPU and a package; nothing from a network.
Every policy answers the same questions about the samples' pictures. Ends with 1 if a backend that
loads gives other tokens than ort-cpu, or other logits without recorded steps than with them; a
backend that does not load is listed with its reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from avl_plugins.errors import AvlError
from avl_runtime import LVLM
from avl_runtime.execute.device.batch import DeviceBatch
from avl_runtime.generate.results import Result
from avl_runtime.tasks import sample

POLICIES = ("dense", "fastv", "avl", "avl+fastv", "avl:text=0.5,text_min=4", "random:of=avl")
RESTORED = (  # of packages exported with --restore
    "divprune:keep=0.3,positions=restore",
    "divprune:keep=0.5,positions=restore+avl:refresh=2,text=0.5,text_min=4",
)


def check(model: LVLM, reference: LVLM, policies: Sequence[str], steps: int) -> dict[str, Any]:
    """What a backend gives for each policy, beside the reference."""
    found = {}
    for policy in policies:
        expected, ours = _ask(reference, policy, steps), _ask(model, policy, steps)
        records, DeviceBatch.records = DeviceBatch.records, False
        try:
            plain = _ask(model, policy, steps)
        finally:
            DeviceBatch.records = records
        difference = _difference(ours, expected)
        found[policy] = {
            "same_tokens": ours.token_ids == expected.token_ids,
            "same_without_graphs": plain.token_ids == ours.token_ids
            and _difference(plain, ours) == 0,
            "logit_difference": difference,
            "stats": asdict(ours.stats),
            "decode_ms_without_graphs": plain.stats.decode_ms_per_token,
        }
    return found


def _ask(model: LVLM, policy: str, steps: int) -> Result:
    one = sample("caption", "held-out", 3)
    return model.generate(
        one.prompt, [one.image], policy=policy, max_new_tokens=steps, return_logits=True
    )


def _difference(one: Result, other: Result) -> float:
    """The largest of the logits that both have."""
    if one.logits is None or other.logits is None:
        return 0.0
    rows = min(len(one.logits), len(other.logits))
    return float(np.abs(one.logits[:rows] - other.logits[:rows]).max())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("package", type=Path)
    backends = ("ort-cuda", "tensorrt", "tensorrt-rtx")
    parser.add_argument("--backends", nargs="+", choices=backends, default=backends)
    parser.add_argument("--policies", nargs="+")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    reference = LVLM.load(arguments.package, backend="ort-cpu")
    restores = reference.package.manifest.restores
    policies = arguments.policies or [*POLICIES, *(RESTORED if restores else ())]
    report: dict[str, Any] = {}
    for name in arguments.backends:
        try:
            model = LVLM.load(arguments.package, backend=name)
            report[name] = check(model, reference, policies, arguments.steps)
        except AvlError as error:
            report[name] = {"not run": str(error)}
    wrong = []
    for name, told in report.items():
        for policy, row in told.items():
            if policy == "not run":
                print(f"{name}: not run: {row}")
                continue
            right = row["same_tokens"] and row["same_without_graphs"]
            wrong += [] if right else [f"{name} {policy}"]
            ms = row["stats"]["decode_ms_per_token"]
            print(
                f"{name} {policy}: {'same' if right else 'OTHER'}, {ms:.2f} ms a token "
                f"({row['decode_ms_without_graphs']:.2f} without graphs), logits within "
                f"{row['logit_difference']:.2g}"
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

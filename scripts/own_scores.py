#!/usr/bin/env python
"""Measure ranking by the layer before against a layer's own scores, on avl-tiny's held-out samples.

    .venv/bin/python scripts/own_scores.py --samples 40 --json benchmarks/own-scores.json

PyramidDrop and VScan's second stage drop tokens before a layer by that layer's own attention; avl
ranks by the layer before it. Here a layer's own scores are found by reading the prompt once more
for each stage, with one layer more over all tokens that earlier stages have left. Told are scores
by task under either ranking, their differences, sample by sample, with a 95 % interval, and which
part of the tokens both keep, of the same ones to choose among. Nothing here is timed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from avl_plugins.policies import ATTENTION, Action, AtRandom, Policy, Prune, Ranking, View
from avl_plugins.policies.pyramiddrop import Stage
from avl_plugins.policies.ranking import highest
from avl_plugins.policies.view import Scores
from avl_runtime import LVLM
from avl_runtime.evaluate.measure import MAX_NEW_TOKENS
from avl_runtime.tasks import TASKS, samples
from avl_runtime.tasks.metrics import score
from held_out import apart, asked, changes, means, record, tiny

# avl-tiny has six layers: where others have 8, 16 and 24 of 32, and 16, it has these.
METHODS = {"pyramiddrop": ((2, 3, 4), 0.5), "vscan": ((3,), 1 / 3)}
RANKINGS = ("before", "own", "random")


@dataclass(frozen=True, slots=True)
class Told(Ranking):
    """The tokens that it is told, first."""

    positions: tuple[int, ...]

    reads_attention: ClassVar[bool] = False

    def scores(self, view: View, count: int) -> Scores:
        return np.isin(view.positions, self.positions).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Noted(Ranking):
    """The most attention first; notes what it was shown."""

    views: list[View] = field(default_factory=list, compare=False)

    def scores(self, view: View, count: int) -> Scores:
        self.views.append(view)
        return view.attention


@dataclass(frozen=True)
class Stages(Policy):
    """Stages, made elsewhere."""

    stages: tuple[Prune, ...] = ()

    name: ClassVar[str] = "stages"

    def actions(self) -> tuple[Action, ...]:
        return self.stages


def own_stages(
    model: LVLM, request: dict[str, Any], layers: Sequence[int], keep: float
) -> tuple[tuple[Prune, ...], list[float]]:
    """Stages that keep what each layer itself gives most attention, and what both rankings keep."""
    found: list[Prune] = []
    both = []
    for number, layer in enumerate(layers, start=1):
        before, own = Noted(), Noted()
        noting = (*found, Prune(layer, 1.0, before), Prune(layer + 1, 1.0, own))
        model.generate(**request, policy=Stages(noting), max_new_tokens=1)
        count = Stage(layer, keep**number).count(own.views[0].total)
        chosen = [
            view.positions[highest(view.attention, view.positions, count)]
            for view in (before.views[0], own.views[0])
        ]
        both.append(len(set(chosen[0].tolist()) & set(chosen[1].tolist())) / count)
        found.append(Stage(layer, keep**number, Told(tuple(chosen[1].tolist()))))
    return tuple(found), both


def measure(model: LVLM, layers: Sequence[int], keep: float, count: int) -> dict[str, Any]:
    """What is to be said of one method."""
    scores: dict[str, dict[str, list[float]]] = {one: {} for one in RANKINGS}
    both = []
    for task in TASKS:
        for index, one in enumerate(samples(task, "held-out", count)):
            request: dict[str, Any] = {"prompt": one.prompt, "images": [one.image]}
            own, shared = own_stages(model, request, layers, keep)
            both.append(shared)
            for name, ranking in (
                ("before", ATTENTION),
                ("random", AtRandom(index)),
                ("own", None),
            ):
                stages = own
                if ranking is not None:
                    stages = tuple(
                        Stage(layer, keep**number, ranking)
                        for number, layer in enumerate(layers, start=1)
                    )
                policy = Stages(stages)
                reply = model.generate(
                    **request, policy=policy, max_new_tokens=MAX_NEW_TOKENS, temperature=0
                )
                scores[name].setdefault(task, []).append(score(one, reply.text))
    gains, halves = apart(scores["own"], scores["before"])
    return {
        "layers": list(layers),
        "keep": keep,
        "scores": {name: means(by_task) for name, by_task in scores.items()},
        "own_minus_before": gains,
        "interval": halves,
        "both_keep": [round(float(one), 4) for one in np.mean(both, 0)],
    }


def sentence(report: dict[str, Any]) -> str:
    """What documents say of a record."""

    def said(method: dict[str, Any]) -> str:
        gains = changes(method["own_minus_before"], method["interval"])
        shared = ", ".join(f"{100 * one:.0f} %" for one in method["both_keep"])
        layers = ", ".join(map(str, method["layers"]))
        return f"{layers} ({shared} of the tokens kept are the same), changes scores by {gains}"

    pyramid, vscan = (report["methods"][name] for name in METHODS)
    return (
        f"Measured on avl-tiny ({report['samples']} held-out samples a task, 95 % intervals): to "
        f"rank by a layer's own scores in PyramidDrop's stages, before layers {said(pyramid)}; and "
        f"in VScan's of a third, before layer {said(vscan)} (`scripts/own_scores.py`, "
        "[JSON](../benchmarks/own-scores.json))."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parsed = asked(__doc__, 40, arguments)
    cuts = sorted(
        {cut for layers, _ in METHODS.values() for one in layers for cut in (one, one + 1)}
    )
    with tiny("--split", ",".join(map(str, cuts))) as out:
        model = LVLM.load(out, backend="ort-cpu")
        methods = {name: measure(model, *how, parsed.samples) for name, how in METHODS.items()}
    print(json.dumps(record(parsed, {"methods": methods}), indent=2))


if __name__ == "__main__":
    main()

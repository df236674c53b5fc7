#!/usr/bin/env python
"""Measure cached rows of 4 and 2 bits on avl-tiny's held-out samples, beside KIVI's rounding.

    .venv/bin/python scripts/few_bits.py --samples 200 --json benchmarks/few-bits.json

Of every way: scores by task, as avl-eval counts them; the divergence KL(fp32 || rounded) in nats a
token, over the greedy reply that rows in fp32 give under the same policy, from its second token on
(the first comes before rows are parked); and bytes of the rows that hold a prompt.

KIVI (arXiv 2402.02750) is emulated: rows stay in fp32, and when a prompt has been read keys are
rounded per channel over groups of 32 tokens and values per token over groups of 32 channels, each
group with its least number and a step, but for the newest 32 tokens; those of a reply stay as they
are. Its groups of keys span tokens, so that no row of it could move alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.evaluate.measure import MAX_NEW_TOKENS, divergences
from avl_runtime.generate.prefill import finished
from avl_runtime.generate.sequence import Sequence as Rows
from avl_runtime.tasks import TASKS, Sample, samples
from avl_runtime.tasks.metrics import score
from held_out import asked, means, record, tiny

GROUP = 32  # tokens, or channels, that share a step in KIVI, and the newest tokens it leaves
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Way:
    """How rows are kept under a policy; `kivi` bits if rows are rounded as KIVI rounds them."""

    policy: str
    kv: str
    kivi: int | None = None

    @property
    def name(self) -> str:
        return f"--kv {self.kv}" if self.kivi is None else f"KIVI, {self.kivi} bits"


WAYS = (
    Way("dense", "int8"),
    Way("dense", "fp32", 4),
    Way("dense", "fp32", 2),
    Way("akvq", "int8-int4"),
    Way("akvq", "int8-int2"),
    Way("akvq:pivots=0.2", "int8-int2"),
    Way("avl", "int8"),
    Way("avl", "int8-int4"),
    Way("avl", "int8-int2"),
)
EXACT = {"akvq": "dense", "akvq:pivots=0.2": "dense"}  # what rows in fp32 make of a policy


def grouped(rows: Array, axis: int, bits: int) -> Array:
    """Rows with groups of GROUP along an axis of whole groups as KIVI rounds them."""
    shape = rows.shape
    parts = (*shape[:axis], shape[axis] // GROUP, GROUP, *shape[axis + 1 :])
    groups = rows.reshape(parts)
    least, most = (one(groups, axis + 1, keepdims=True) for one in (np.min, np.max))
    step = np.maximum((most - least) / (2**bits - 1), 1e-30)
    rounded: Array = (np.rint((groups - least) / step) * step + least).reshape(shape)
    return rounded


def round_as_kivi(sequence: Rows, bits: int) -> None:
    """Round a sequence's rows, which lie in the order of their tokens, in place."""
    for cache in sequence.caches:
        for layer, length in enumerate(cache.active_len[:, 0].tolist()):
            keys, values = cache.k_active[layer], cache.v_active[layer]
            whole, old = length - length % GROUP, max(0, length - GROUP)
            keys[:, :, :whole] = grouped(keys[:, :, :whole], 2, bits)
            values[:, :, :old] = grouped(values[:, :, :old], 3, bits)


@dataclass
class Found:
    """Sums over samples."""

    scores: dict[str, list[float]] = field(default_factory=dict)
    apart: list[float] = field(default_factory=list)
    bytes: int = 0


def replied(
    model: LVLM, way: Way, one: Sample, forced: tuple[int, ...] | None = None
) -> tuple[list[int], Array, int]:
    """A greedy reply, or the one that is forced: its tokens, their logits, and bytes of rows."""
    loaded = model.loaded
    sequence, decoder = loaded.sequence(parse(way.policy)), loaded.decoder()
    logits = [finished(loaded.prefill(sequence, model.processor.encode(one.prompt, [one.image])))]
    if way.kivi is not None:
        round_as_kivi(sequence, way.kivi)
    size = sum(sequence.bytes_held())
    decoder.join([sequence], MAX_NEW_TOKENS)
    tokens = [int(logits[0].argmax()) if forced is None else forced[0]]
    most = MAX_NEW_TOKENS if forced is None else len(forced)
    ends = model.package.manifest.tokens.eos
    while len(tokens) < most and (forced is not None or tokens[-1] not in ends):
        logits.append(decoder.run([tokens[-1]])[0].copy())
        tokens.append(int(logits[-1].argmax()) if forced is None else forced[len(tokens)])
    decoder.leave(sequence, keep=False)
    return tokens, np.stack(logits), size


def measure(models: dict[str, LVLM], count: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """What is to be said of every way, and of rows in fp32 under the policies that these have."""
    found = {way: Found() for way in WAYS}
    exact = {policy: Found() for policy in dict.fromkeys(map(exact_policy, WAYS))}
    for task in TASKS:
        for number, one in enumerate(samples(task, "held-out", count)):
            tell(f"{task} {number + 1} of {count}")
            base = {}
            for policy, note in exact.items():
                base[policy] = replied(models["fp32"], Way(policy, "fp32"), one)
                add(note, models["fp32"], task, one, base[policy])
            for way, note in found.items():
                model = models[way.kv]
                add(note, model, task, one, replied(model, way, one))
                tokens, logits, _ = base[exact_policy(way)]
                if len(tokens) > 1:
                    _, other, _ = replied(model, way, one, tuple(tokens))
                    note.apart += map(float, divergences(logits[1:], other[1:]))
    return {
        "exact": [
            {"policy": policy, "scores": means(note.scores)} for policy, note in exact.items()
        ],
        "ways": [
            {
                "policy": way.policy,
                "rows": way.name,
                "scores": means(note.scores),
                "divergence": float(np.mean(note.apart)),
                "divergence_p99": float(np.percentile(note.apart, 99)),
                "bytes": None if way.kivi else note.bytes / exact[exact_policy(way)].bytes,
            }
            for way, note in found.items()
        ],
    }


def exact_policy(way: Way) -> str:
    return EXACT.get(way.policy, way.policy)


def add(
    note: Found, model: LVLM, task: str, one: Sample, reply: tuple[list[int], Array, int]
) -> None:
    tokens, _, size = reply
    ends = model.package.manifest.tokens.eos
    text = model.processor.decode([token for token in tokens if token not in ends])
    note.scores.setdefault(task, []).append(score(one, text))
    note.bytes += size


def table(report: dict[str, Any]) -> str:
    """The record as documents show it."""
    lines = [
        f"avl-tiny, {report['samples']} held-out samples a task, head size 32: scores, KL "
        "divergence in nats a token from rows in fp32 under the same policy (for `akvq` under "
        "`dense`), and bytes of a prompt's rows (`scripts/few_bits.py`, "
        "[JSON](../benchmarks/few-bits.json)).",
        "",
    ]
    lines.append("| policy | rows | " + " | ".join(TASKS) + " | KL | bytes |")
    lines.append("|---" * (len(TASKS) + 4) + "|")
    for row in report["exact"]:
        scores = " | ".join(f"{row['scores'][task]:.3f}" for task in TASKS)
        lines.append(f"| `{row['policy']}` | fp32 | {scores} | 0 | 1 |")
    for row in report["ways"]:
        scores = " | ".join(f"{row['scores'][task]:.3f}" for task in TASKS)
        rows = f"`{row['rows']}`" if row["rows"].startswith("--") else row["rows"]
        size = "" if row["bytes"] is None else f"{row['bytes']:.3f}"
        lines.append(
            f"| `{row['policy']}` | {rows} | {scores} | {row['divergence']:.1e} | {size} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parsed = asked(__doc__, 200, arguments)
    with tiny() as out:
        kinds = ("fp32", *dict.fromkeys(way.kv for way in WAYS if way.kivi is None))
        models = {kind: LVLM.load(out, backend="ort-cpu", kv=kind) for kind in kinds}
        found = measure(models, parsed.samples, lambda line: print(line, file=sys.stderr))
    print(table(record(parsed, found)))


if __name__ == "__main__":
    main()

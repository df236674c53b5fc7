#!/usr/bin/env python
"""Time replies with prompt lookup against those without, on avl-tiny's held-out samples.

    .venv/bin/python scripts/lookup_speed.py --json benchmarks/lookup-speed.json

Each sample is asked with and without drafts, one behind the other, and their tokens must be equal.
"ocr": a page of random letters and digits is read. "json": a scene is told as JSON of a schema,
whose keys come again with each object. Told are decode times a token and their ratio, drafts, how
many tokens had two before them that were there together before, and how many of these were what
followed then (so many steps a drafter without costs would save); and how long runs take that check
drafts, the first of a number of rows, which binds buffers, and those behind it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from avl_plugins.logits import Logits
from avl_runtime import LVLM
from avl_runtime.generate.drafts import NO_TEXT, PromptLookup
from avl_runtime.generate.prefill import finished
from avl_runtime.generate.results import Result
from avl_runtime.tasks import Sample, samples
from avl_runtime.tasks.sample import Task
from avl_runtime.tasks.scene import COLORS, COLUMNS, ROWS, SHAPES
from held_out import asked, record, tiny

MOST = 15  # drafts of a run
THREADS = 1  # steps of a millisecond depend on the scheduler where two threads wait for each other
TOKENS = {"ocr": 64, "json": 160}
ROUNDS, RUNS = 3, 200
OBJECT = {
    "type": "object",
    "properties": {
        "color": {"enum": list(COLORS)},
        "shape": {"enum": list(SHAPES)},
        "row": {"enum": list(ROWS)},
        "column": {"enum": list(COLUMNS)},
    },
    "required": ["color", "shape", "row", "column"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": OBJECT, "minItems": 4, "maxItems": 4}


def reply(model: LVLM, case: str, sample: Sample, lookup: int) -> Result:
    """The reply that is timed."""
    options: dict[str, Any] = {"max_new_tokens": TOKENS[case], "prompt_lookup": lookup}
    if case == "json":
        options["json_schema"] = SCHEMA
    return model.generate(sample.prompt, [sample.image], **options)


def known(model: LVLM, sample: Sample, tokens: Sequence[int]) -> tuple[int, int]:
    """How many tokens of a reply something could be drafted for, and how many of these it was."""
    prompt = model.loaded.processor.encode(sample.prompt, [sample.image])
    lookup, matched, right = PromptLookup(MOST), 0, 0
    lookup.add(np.where(prompt.image_mask, NO_TEXT, prompt.input_ids).tolist())
    for token in tokens:
        found = lookup.follow(1)
        matched, right = matched + len(found), right + (found == [token])
        lookup.say(token)
    return matched, right


def compared(model: LVLM, case: str, count: int) -> dict[str, Any]:
    """Decode times of a case's samples, summed over all, with drafts and without."""
    task: Task = "caption" if case == "json" else "ocr"
    ratios, found = [], {}
    times: dict[int, list[float]] = {0: [], MOST: []}
    for number in range(ROUNDS + 1):  # the first is not counted
        spent, steps = dict.fromkeys(times, 0.0), dict.fromkeys(times, 0)
        found = dict.fromkeys(("tokens", "matched", "right", "drafted", "accepted"), 0)
        for place, sample in enumerate(samples(task, "held-out", count)):
            said = {}
            for lookup in (0, MOST) if (place + number) % 2 else (MOST, 0):
                said[lookup] = one = reply(model, case, sample, lookup)
                new = one.stats.new_tokens - 1
                spent[lookup] += one.stats.decode_ms_per_token * new
                steps[lookup] += new
            if said[0].token_ids != said[MOST].token_ids:
                raise SystemExit(f"{case}: expected equal tokens, found others in sample {place}")
            stats = said[MOST].stats
            counts = *known(model, sample, said[MOST].token_ids), stats.drafted, stats.accepted
            for name, count_of in zip(found, (stats.new_tokens, *counts), strict=True):
                found[name] += count_of
        if number:
            for lookup, all_of in times.items():
                all_of.append(spent[lookup] / steps[lookup])
            ratios.append(spent[MOST] / spent[0])
    return {
        **found,
        "ms_per_token": {str(n): round(statistics.median(one), 4) for n, one in times.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(one, 3) for one in ratios],
    }


def runs(model: LVLM) -> Iterator[tuple[str, list[float]]]:
    """Milliseconds of a run over so many rows, of which one is kept: the first, and the median."""
    loaded = model.loaded
    (page,) = samples("ocr", "held-out", 1)
    prompt = loaded.processor.encode(page.prompt, [page.image])
    for rows in (0, 1, 2, 4, 8, 16):
        sequence = loaded.sequence(model.policy)
        finished(loaded.prefill(sequence, prompt))
        decoder = loaded.decoder()
        decoder.join([sequence], 64)
        length, times = sequence.length, []
        for _ in range(RUNS):
            begun = time.perf_counter()
            if rows:
                (check,) = decoder.check([(sequence, [5] * rows)], Logits.ALL, 64)
                check.keep(1)
            else:
                decoder.run([5])
            times.append(time.perf_counter() - begun)
            sequence.roll_back(length)
        pair = times[0], statistics.median(times)
        yield str(rows) if rows else "step", [round(1e3 * one, 4) for one in pair]


def sentence(report: dict[str, Any]) -> str:
    """What documents say of a record."""
    page, told = report["ocr"], report["json"]
    step, rows = report["run_ms"]["step"][1], report["run_ms"]["16"][1]
    return (
        f"Measured on avl-tiny with {report['threads']} thread, {report['samples']} held-out "
        f"samples a case, the same tokens with and without: where scenes are told as JSON of a "
        f"schema, {told['right']} of {told['tokens']} tokens are what followed the last time, "
        f"{told['accepted']} of {told['drafted']} drafts were right, and a token takes "
        f"{told['ratio']:.2f} of the time; where pages of random letters and digits are read, "
        f"{page['right']} of {page['tokens']}, so that no draft could save more, "
        f"{page['drafted'] or 'none'} drafted, and {page['ratio']:.2f} of the time. Its weights "
        f"fit a processor's cache, so that rows cost much: a run of 16 takes {rows / step:.1f} "
        "steps (`scripts/lookup_speed.py`, [JSON](../benchmarks/lookup-speed.json))."
    )


def main() -> None:
    """Measure and record."""
    parsed = asked(__doc__, 12, None)
    with tiny() as package:
        model = LVLM.load(package, backend="ort-cpu", threads=THREADS)
        found: dict[str, Any] = {case: compared(model, case, parsed.samples) for case in TOKENS}
        found |= {"threads": THREADS, "run_ms": dict(runs(model))}
    for name, one in record(parsed, found).items():
        print(name, one)


if __name__ == "__main__":
    main()

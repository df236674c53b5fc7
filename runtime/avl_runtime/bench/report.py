"""Figures as JSON, CSV and a Markdown table: the same ones in each."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

from avl_runtime.bench.summary import Row, Spread

MIB = 1 << 20
TIMES = {
    "encode": "encode ms",
    "prefill": "prefill ms",
    "decode_step": "step ms",
    "refresh_step": "refresh ms",
    "decode_token": "ms a token",
    "end_to_end": "end to end ms",
    "cpu": "CPU ms",
}
LEGEND = (
    "Times: median over runs (minimum; quartiles). *step*: an ordinary decode step; *refresh*: one "
    "that reads parked rows too; *ms a token*: all decode steps by their number; *CPU*: process "
    "time of a run, all threads. GFLOPs by formula, 4nd² + 2n²d + 3ndm a layer, a multiplication "
    "with its addition counted as one; in brackets a second."
)


def as_json(environment: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The whole report as one object."""
    return {**environment, "candidates": [dataclasses.asdict(row) for row in rows]}


def as_csv(rows: Sequence[Row]) -> str:
    """One line a candidate; a spread takes five columns, steps one by one are left out."""
    lines = []
    for row in rows:
        line: dict[str, object] = {}
        for field in dataclasses.fields(Row):
            value = getattr(row, field.name)
            if field.name in TIMES:
                for part in dataclasses.fields(Spread):
                    line[f"{field.name}_ms_{part.name}"] = getattr(value, part.name, None)
            elif field.name != "step_ms":
                line[field.name] = value
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_markdown(environment: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """A table for people, with what it was measured on above and notes below."""
    heads = ["candidate", "weights", *TIMES.values(), "KV MiB", "peak RSS MiB"]
    heads += ["prefill GFLOPs", "GFLOPs a token", "same tokens"]
    lines = [_facts(environment), "", _line(heads), "|" + "---|" * len(heads)]
    for row in rows:
        times = [_spread(getattr(row, name)) for name in TIMES]
        lines.append(
            _line(
                [
                    f"`{row.name}`",
                    row.weights,
                    *times,
                    f"{row.kv_bytes / MIB:.1f}",
                    f"{row.peak_rss_bytes / MIB:.0f}",
                    _rate(row.prefill_flops, row.prefill),
                    _rate(row.decode_flops, row.decode_token),
                    "-" if row.same_tokens is None else f"{row.same_tokens:.0%}",
                ]
            )
        )
    notes = [f"- `{row.name}`: {row.note}" for row in rows if row.note]
    notes += [
        f"- `{row.name}`: in {row.disturbed} of {row.runs} runs other programs used more than a "
        "tenth of the machine"
        for row in rows
        if row.disturbed
    ]
    return "\n".join([*lines, "", LEGEND, *(["", *notes] if notes else [])])


def _facts(environment: Mapping[str, Any]) -> str:
    machine, asked = environment["machine"], environment["workload"]
    versions = ", ".join(f"{name} {found}" for name, found in environment["versions"].items())
    runs = environment["starts"] * environment["repeats"]
    return (
        f"{environment['model']} ({environment['family']}): {asked['visual_tokens']} visual and "
        f"{asked['text_tokens']} text tokens, {asked['new_tokens']} new, batch {asked['batch']}; "
        f"{environment['threads']} threads on {machine['cpu']} ({machine['processors']} "
        f"processors, {machine['memory_bytes'] / (1 << 30):.0f} GiB), {machine['system']}; "
        f"{versions}; {runs} runs each, {environment['date']}"
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    digits = 0 if spread.median >= 1000 else 1 if spread.median >= 100 else 2
    median, least, first, third = (
        f"{value:.{digits}f}"
        for value in (spread.median, spread.minimum, spread.quartile_1, spread.quartile_3)
    )
    return f"{median} ({least}; {first}-{third})"


def _rate(flops: float, spread: Spread | None) -> str:
    if spread is None or not spread.median:
        return "-"
    return f"{flops / 1e9:.3g} ({flops / 1e6 / spread.median:.3g})"

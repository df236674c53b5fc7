"""Measurements as a Markdown table and as a plot of quality against what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError, shown
from avl_runtime.evaluate.labels import Label, write_labels
from avl_runtime.machine.installation import need

Row = dict[str, Any]

# Known curves and their colours; points of a curve are joined.
CURVES = {
    "dense": "#30343a",
    "fastv": "#e07800",
    "random, of fastv": "#d9a86c",
    "avl": "#0070e0",
    "avl, core": "#009c8e",
    "avl, refresh": "#7a5cff",
    "avl, text": "#c2187c",
    "random, of avl": "#6ba3dd",
    "avl+fastv": "#3f8f2f",
}
OTHERS = ("#8c564b", "#b8860b", "#5f7d8c", "#a0522d", "#556b2f")
ALONE = ("core", "refresh", "text")  # options of A-VL that have a curve of their own
TIMES = {"first_ms": "to first token", "step_ms": "per token"}
PANELS = (("kv", "KV bytes, share of dense"), ("flops", "FLOPs, share of dense"))


class PlotError(AvlError):
    """The plot cannot be drawn."""


def table(rows: Sequence[Row]) -> str:
    """One line a policy, in the shape of the papers' tables; shares of dense in brackets."""
    tasks = list(rows[0]["scores"])
    base = next((row["scores"] for row in rows if row["policy"] == "dense"), None)
    timed = [name for name in TIMES if all(name in row for row in rows)]
    heads = ["policy", *tasks, "image KV", "total KV", "FLOPs", "same first token", "KL to dense"]
    heads += [TIMES[name] for name in timed]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [f"`{row['policy']}`"]
        for task in tasks:
            score, dense = row["scores"][task], base[task] if base else 0.0
            cells.append(f"{score:.3f}" + (f" ({score / dense:.2f})" if dense else ""))
        cells += [_share(row[name]) for name in ("image_kv", "kv", "flops", "first_token")]
        cells.append("-" if row["divergence"] is None else f"{row['divergence']:.4f}")
        cells += [f"{row[name]:.2f} ms" for name in timed]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw mean quality against KV bytes and against FLOPs, both as shares of dense, as PNG.

    Every row is a point with its options beside it and, where its scores have standard errors, a
    bar of one up and down.

    Raises:
        MissingError: matplotlib is not installed.
        PlotError: there is no row, or the file cannot be written.
    """
    if not rows:
        raise PlotError("expected at least one policy to plot, found none; name some")
    need("eval", "matplotlib", what_for="--plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1)
    curves = _curves(rows)
    for panel, (key, label) in zip(panels, PANELS, strict=True):
        for curve, (colour, members) in curves.items():
            points = sorted(members, key=lambda row: (row[key], mean_score(row)))
            x, y = [row[key] for row in points], [mean_score(row) for row in points]
            bars = [standard_error(row) or 0.0 for row in points]
            panel.errorbar(
                x, y, yerr=bars, fmt="o-", ms=5, lw=1.4, elinewidth=1, capsize=2.5,
                color=colour, label=curve if panel is panels[0] else None,
            )  # fmt: skip
        panel.set_xlabel(label)
        panel.set_ylabel("mean score over tasks")
        panel.margins(0.07, 0.09)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9.5)
    told = "numbers: keep, the share of image tokens"
    if any(standard_error(row) is not None for row in rows):
        told += "; bars: one standard error over samples"
    figure.suptitle(f"{title}\n{told}", fontsize=11)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for panel, (key, _) in zip(panels, PANELS, strict=True):
        marks = [
            Label(row[key], mean_score(row), point_label(row["policy"]), colour)
            for colour, members in curves.values()
            for row in members
        ]
        lines = [
            sorted((row[key], mean_score(row)) for row in members) for _, members in curves.values()
        ]
        lines += [
            [(row[key], mean_score(row) - error), (row[key], mean_score(row) + error)]
            for row in rows
            if (error := standard_error(row))
        ]
        write_labels(figure, panel, marks, lines)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise PlotError(
            f"{shown(path)}: expected a place for a PNG, found: {shown(error)}"
        ) from None


def _curves(rows: Sequence[Row]) -> dict[str, tuple[str, list[Row]]]:
    """Rows by curve, each with its colour: known curves first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(curve_of(row["policy"]), []).append(row)
    spare = cycle(OTHERS)
    known = {name: (colour, found[name]) for name, colour in CURVES.items() if name in found}
    strange = {name: (next(spare), found[name]) for name in found if name not in CURVES}
    return known | strange


def curve_of(policy: str) -> str:
    """The curve that a policy lies on: its name, or what alone was asked of it."""
    if "+" in policy:
        return "+".join(part.partition(":")[0] for part in policy.split("+"))
    name, options = _options(policy)
    if name == "random":
        return f"random, of {options.get('of', 'fastv')}"
    for alone in ALONE:
        if name == "avl" and (options.keys() == {alone} or (alone == "text" and alone in options)):
            return f"avl, {alone}"
    return name


def point_label(policy: str) -> str:
    """What tells a policy from the others of its curve: keep as a number, the rest by name."""
    if "+" in policy:
        parts = [point_label(part) for part in policy.split("+")]
        return "+".join(parts) if any(_options(part)[1] for part in policy.split("+")) else policy
    name, options = _options(policy)
    options.pop("of", None)
    if not options and name in ("fastv", "avl", "random"):
        options = {"keep": "0.5"}  # their default
    told = [f"{float(options.pop('keep')):g}"] if "keep" in options else []
    return ", ".join([*told, *(f"{key} {value}" for key, value in options.items())]) or name


def _options(policy: str) -> tuple[str, dict[str, str]]:
    name, _, asked = policy.partition(":")
    pairs = (option.partition("=") for option in asked.split(",") if option)
    return name, {key: value for key, _, value in pairs}


def mean_score(row: Row) -> float:
    """The mean over tasks."""
    scores = list(row["scores"].values())
    return float(sum(scores) / len(scores))


def standard_error(row: Row) -> float | None:
    """Of the mean over tasks, whose samples have nothing to do with one another's."""
    errors = row.get("standard_errors", {})
    found = [errors.get(task) for task in row["scores"]]
    known = [float(error) for error in found if error is not None]
    return math.hypot(*known) / len(known) if known and len(known) == len(found) else None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"

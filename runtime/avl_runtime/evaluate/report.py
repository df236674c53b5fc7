"""Measurements as a Markdown table and as a plot of quality against what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avl_plugins.errors import AvlError
from avl_runtime.installation import need

Row = dict[str, Any]

# What is drawn, in which colour; points of a curve are joined.
CURVES = {
    "dense": "#30343a",
    "fastv": "#ff8a00",
    "random, of fastv": "#ffcf99",
    "avl": "#0084ff",
    "avl, core": "#00b3a4",
    "avl, refresh": "#7a5cff",
    "random, of avl": "#9fcdf7",
}


class PlotError(AvlError):
    """The plot cannot be drawn."""


def table(rows: Sequence[Row]) -> str:
    """One line a policy, in the shape of the papers' tables; shares of dense in brackets."""
    tasks = list(rows[0]["scores"])
    base = next((row["scores"] for row in rows if row["policy"] == "dense"), None)
    heads = ["policy", *tasks, "image KV", "total KV", "FLOPs", "first token", "KL to dense"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [f"`{row['policy']}`"]
        for task in tasks:
            score, dense = row["scores"][task], base[task] if base else 0.0
            cells.append(f"{score:.3f}" + (f" ({score / dense:.2f})" if dense else ""))
        cells += [_share(row[name]) for name in ("image_kv", "kv", "flops", "first_token")]
        cells.append("-" if row["divergence"] is None else f"{row['divergence']:.4f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw mean quality against KV bytes and against FLOPs, both as shares of dense, as PNG.

    Raises:
        MissingError: matplotlib is not installed.
        PlotError: the file cannot be written.
    """
    need("eval", "matplotlib", what_for="--plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = (("kv", "KV bytes, share of dense"), ("flops", "FLOPs, share of dense"))
    for panel, (key, label) in zip(panels, names, strict=True):
        for curve, colour in CURVES.items():
            points = sorted(
                (row[key], _mean_score(row)) for row in rows if curve_of(row["policy"]) == curve
            )
            if points:
                x, y = zip(*points, strict=True)
                panel.plot(x, y, "o-", color=colour, label=curve)
        panel.set_xlabel(label)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean score over tasks")
    panels[0].legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise PlotError(f"{path}: expected a place for a PNG, found: {error}") from None


def curve_of(policy: str) -> str | None:
    """The curve that a policy lies on; chains and text budgets are in the table only."""
    name, _, asked = policy.partition(":")
    options = dict(option.split("=") for option in asked.split(",") if option)
    if "+" in policy or "text" in options:
        return None
    if name == "random":
        return f"random, of {options.get('of', 'fastv')}"
    for alone in ("core", "refresh"):
        if name == "avl" and options.keys() == {alone}:
            return f"avl, {alone}"
    return name


def _mean_score(row: Row) -> float:
    scores = list(row["scores"].values())
    return float(sum(scores) / len(scores))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"

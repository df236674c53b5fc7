"""scripts/zoo_table.py: tables and the picture of a record of avl-eval --zoo."""

from __future__ import annotations

import re
from typing import Any

import pytest

import zoo_jobs
from avl_runtime import LVLM
from zoo_jobs import long_answers, long_table, turns, turns_table
from zoo_picture import pareto, picture
from zoo_table import SHARES, difference, sentence, surroundings, table, whole

SCORES = {
    "uniform": (0.5, "before the decoder"),
    "divprune": (0.8, "before the decoder"),
    "fastv": (0.6, "between layers"),
    "random:of=avl": (0.2, "in the cache"),
    "zipvl": (0.9, "in the cache"),
}


def row(policy: str, ocr: float, kv: float) -> dict[str, Any]:
    scores = {"caption": 0.5, "vqa": 0.75, "ocr": ocr}
    errors = dict.fromkeys(scores, 0.03)
    shares = {"kv": kv, "image_kv": kv, "flops": kv, "first_token": 1.0, "divergence": 0.0}
    return {"policy": policy, "scores": scores, "standard_errors": errors} | shares


RECORD: dict[str, Any] = {
    "samples_per_task": 40,
    "times": None,
    "policies": [
        row("dense", 1.0, 1.0),
        *(
            row(f"{name}, {share}", score * share, share)
            | {"name": name, "stage": stage, "share": share}
            for name, (score, stage) in SCORES.items()
            for share in SHARES
        ),
    ],
}


def timed(busy: float | None) -> dict[str, Any]:
    times = {"busy_before": busy, "steps": 32, "machine": {"cpu": "Abacus", "processors": 2}}
    rows = [one | {"first_ms": 12.375, "step_ms": 1.5} for one in RECORD["policies"]]
    return RECORD | {"times": times, "policies": rows}


def test_rows_are_by_stage_and_the_best_reader_of_a_ninth_comes_first() -> None:
    lines = table(RECORD).splitlines()
    names = [line.split("|")[1].strip(" `*") for line in lines[2:]]
    before = ["dense", "before the decoder", "divprune", "uniform"]
    assert names[:4] == before
    assert names[4:] == ["between layers", "fastv", "in the cache", "zipvl", "random:of=avl"]
    assert "| `divprune` | 0.40 | 0.27 | 0.09 | 0.04 | 0.75 | 0.50 | 11% | 11% | 11% |" in lines
    found = sentence(RECORD)
    assert "`divprune` reads most" in found and "+0.02 ± 0.08" in found


def test_the_whole_has_a_table_a_share_with_intervals() -> None:
    found = whole(RECORD)
    assert re.findall("^## .*", found, re.MULTILINE) == [
        f"## {told} of the tokens" for told in SHARES.values()
    ]
    assert found.count("| `dense` |") == 4
    assert (
        "| `zipvl, 0.3333` | 0.30 ± 0.06 | 0.75 ± 0.06 | 0.50 ± 0.06 | 33% | 33% | 33% |" in found
    )


def test_times_are_told_of_idle_machines_alone() -> None:
    quiet = timed(0.02)
    assert "| 12.38 ms | 1.50 ms |" in table(quiet)
    assert "first token, 1/9 | each next, 1/9 |" in table(quiet)
    assert "Abacus" in surroundings(quiet) and "left out" in surroundings(RECORD)
    for busy in (0.5, None):
        with pytest.raises(ValueError, match="expected times of an idle machine"):
            table(timed(busy))


def test_differences_have_the_error_of_both() -> None:
    gain, error = difference(RECORD["policies"][0], RECORD["policies"][1], "ocr")
    assert gain == pytest.approx(0.75) and error == pytest.approx(0.03 * 2**0.5)


def test_the_line_is_what_no_other_beats() -> None:
    rows = [row("a", 0.3, 0.2), row("b", 0.2, 0.3), row("c", 0.3, 0.4), row("d", 0.9, 0.4)]
    assert [one["policy"] for one in pareto(rows, "ocr")] == ["a", "d"]


def test_the_picture_has_a_panel_a_task_and_a_mark_a_row() -> None:
    drawn = picture(RECORD)
    words = re.findall("<text [^>]*>([^<]+)</text>", drawn)
    assert {"ocr", "vqa", "caption"} < set(words) and words.count("divprune") == 3
    shapes = {name: drawn.count(f"<{name} ") for name in ("circle", "path")}
    assert shapes["circle"] == 3 * (2 * 4 + 2)  # marks, and the legend's
    assert shapes["path"] == 3 * (3 * 4 + 3 + 5 + 1)  # and lines of the grid, and the best's
    assert words.count("zipvl 1/9") == 1 and words.count("dense") == 1


def test_jobs_are_measured_beside_dense_attention(
    tiny: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dense attention agrees with itself; each policy has a share a part, and a question."""
    monkeypatch.setattr(zoo_jobs, "POLICIES", ("dense", "random:of=embedded,keep=0.1"))
    monkeypatch.setattr(zoo_jobs, "TOKENS", 12)
    monkeypatch.setattr(zoo_jobs, "PARTS", ((1, 6), (6, 12)))
    monkeypatch.setattr(zoo_jobs, "QUESTIONS", 2)
    record = {"long": long_answers(tiny, 1), "turns": turns(tiny, 2)}
    dense, blind = record["long"]
    assert dense["agreement"] == [1, 1] and dense["divergence"] == [0, 0]
    assert min(blind["divergence"]) > 0.01
    assert record["turns"][0]["right"] == [1, 1]  # what avl-tiny has learnt
    assert len(long_table(record).splitlines()) == len(turns_table(record).splitlines()) == 4
    assert "| `dense` | 1.00 | 1.00 | 0.00 | 0.00 |" in long_table(record)

"""scripts/zoo_table.py: tables and the picture of a record of avl-eval --zoo."""

from __future__ import annotations

import re
from typing import Any

import pytest

from zoo_table import difference, pareto, picture, sentence, table

SCORES = {"dense": 1.0, "divprune": 0.8, "uniform": 0.5, "fastv": 0.6, "random:of=avl": 0.2}
SHARES = ("0.5", "0.3333", "0.1111", "0.0556")


def row(policy: str, ocr: float, kv: float) -> dict[str, Any]:
    scores = {"caption": 0.5, "vqa": 0.75, "ocr": ocr}
    errors = dict.fromkeys(scores, 0.03)
    shares = {"kv": kv, "image_kv": kv, "flops": kv, "first_token": 1.0, "divergence": 0.0}
    return {"policy": policy, "scores": scores, "standard_errors": errors} | shares


def written(name: str, keep: str) -> str:
    name, _, more = name.partition(":")
    if name == "fastv" and keep == "0.5":
        return name  # its default
    return f"{name}:keep={keep}" + (f",{more}" if more else "")


RECORD = {
    "samples_per_task": 40,
    "policies": [
        row("dense", 1.0, 1.0),
        *(
            row(written(name, keep), score * float(keep), float(keep))
            for name, score in SCORES.items()
            if name != "dense"
            for keep in SHARES
        ),
    ],
}


def test_the_best_reader_of_a_ninth_comes_first() -> None:
    lines = table(RECORD).splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:]]
    assert names == ["`dense`", "`divprune`", "`fastv`", "`uniform`", "`random:of=avl`"]
    assert "| `divprune` | 0.40 | 0.27 | 0.09 | 0.04 | 0.75 | 0.50 | 11% | 11% |" in lines
    found = sentence(RECORD)
    assert "`divprune` reads most" in found and "+0.02 ± 0.08" in found


def test_differences_have_the_error_of_both() -> None:
    gain, error = difference(RECORD["policies"][0], RECORD["policies"][1], "ocr")
    assert gain == pytest.approx(0.6) and error == pytest.approx(0.03 * 2**0.5)


def test_the_line_is_what_no_other_beats() -> None:
    rows = [row("a", 0.3, 0.2), row("b", 0.2, 0.3), row("c", 0.3, 0.4), row("d", 0.9, 0.4)]
    assert [one["policy"] for one in pareto(rows, "ocr")] == ["a", "d"]


def test_the_picture_has_a_panel_a_task_and_a_mark_a_row() -> None:
    drawn = picture(RECORD)
    words = re.findall("<text [^>]*>([^<]+)</text>", drawn)
    assert {"ocr", "vqa", "caption"} < set(words) and words.count("divprune") == 3
    assert drawn.count("<circle ") == 3 * (len(RECORD["policies"]) - 1 + 4)

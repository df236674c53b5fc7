"""JSON, CSV and the table say the same."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from typing import Any

import pytest

from avl_plugins.policies import parse
from avl_runtime.bench.candidates import Candidate
from avl_runtime.bench.report import TIMES, as_csv, as_json, as_markdown
from avl_runtime.bench.schedule import Run
from avl_runtime.bench.summary import Loaded, Row, summarize
from avl_runtime.evaluate.cost import Request
from avl_runtime.package.dims import Dims

DIMS = Dims(64, 128, 4, 4, 2, 16, 100, 512, 1)
ENVIRONMENT: dict[str, Any] = {
    "model": "a-model",
    "family": "llava",
    "workload": {"visual_tokens": 20, "text_tokens": 20, "new_tokens": 4, "batch": 2},
    "threads": 2,
    "starts": 2,
    "repeats": 3,
    "machine": {"cpu": "A CPU", "processors": 4, "memory_bytes": 8 << 30, "system": "Linux"},
    "versions": {"avl": "1.2.3", "torch": "4.5"},
    "date": "2026-01-02",
}


@pytest.fixture
def rows() -> list[Row]:
    request = Request(40, 20, 3, 5)
    found = []
    for number, policy in enumerate(("dense", "avl:refresh=2", "fastv")):
        runs = [
            Run(
                None if number == 2 else 0.01 * draw,
                1.25 * draw,
                (0.125, 0.25 * draw, 0.5),
                3.0 * draw,
                3 << 20,
                (100 + number) << 20,
                ((1, 2, 3, 4), (1, 2, 3, number)),
                0.5 if number == 1 else 0.0,
            )
            for draw in (1, 2, 3)
        ]
        actions = parse(policy).actions()
        note = 'asked, "something" else' if number == 2 else ""
        candidate = Candidate(policy, "avl", (), actions, same_prompt=number < 2, note=note)
        known = Loaded(candidate, "fp32", 50 << 20)
        found.append(summarize(known, runs, DIMS, request, 2, runs[0]))
    return found


def test_json_survives_a_round_trip(rows: list[Row]) -> None:
    report = as_json(ENVIRONMENT, rows)
    assert json.loads(json.dumps(report, allow_nan=False))["date"] == "2026-01-02"
    assert [one["name"] for one in report["candidates"]] == ["dense", "avl:refresh=2", "fastv"]
    assert report["candidates"][1]["refresh_step"]["median"] == pytest.approx(500)
    assert report["candidates"][0]["refresh_step"] is None


def test_csv_holds_the_figures_of_json(rows: list[Row]) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(rows))))
    report = as_json(ENVIRONMENT, rows)["candidates"]
    assert len(lines) == len(report) == 3
    for line, one in zip(lines, report, strict=True):
        for name, value in one.items():
            if name in TIMES:
                for part in ("median", "minimum", "quartile_1", "quartile_3", "maximum"):
                    cell = line.pop(f"{name}_ms_{part}")
                    assert cell == "" if value is None else float(cell) == value[part]
            elif name != "step_ms":
                cell = line.pop(name)
                assert cell == ("" if value is None else str(value))
        assert not line, "columns that JSON has not"


def test_the_table_holds_the_figures_of_json(rows: list[Row]) -> None:
    text = as_markdown(ENVIRONMENT, rows)
    table = [line for line in text.splitlines() if line.startswith("|")]
    heads, *cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    report = as_json(ENVIRONMENT, rows)["candidates"]
    for one, line in zip(report, cells[1:], strict=True):
        shown = dict(zip(heads, line, strict=True))
        assert shown["candidate"] == f"`{one['name']}`"
        for name, head in TIMES.items():
            if one[name] is None:
                assert shown[head] == "-"
                continue
            numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", shown[head])]
            kept = [one[name][p] for p in ("median", "minimum", "quartile_1", "quartile_3")]
            assert numbers == pytest.approx(kept, rel=0.01, abs=0.5)
        assert float(shown["KV MiB"]) == one["kv_bytes"] / (1 << 20)
        assert float(shown["peak RSS MiB"]) == one["peak_rss_bytes"] / (1 << 20)
        flops = float(shown["prefill GFLOPs"].split()[0])
        assert flops == pytest.approx(one["prefill_flops"] / 1e9, rel=0.01)
    assert {len(line) for line in cells} == {len(heads)}


def test_the_table_tells_what_it_was_measured_on(rows: list[Row]) -> None:
    text = as_markdown(ENVIRONMENT, rows)
    for fact in ("a-model", "A CPU", "4 processors", "2 threads", "torch 4.5", "2026-01-02"):
        assert fact in text
    assert "20 visual and 20 text tokens, 4 new, batch 2" in text
    assert '- `fastv`: asked, "something" else' in text
    assert "`avl:refresh=2`: in 3 of 3 runs other programs" in text
    assert "`dense`: in" not in text


def test_every_time_has_a_column() -> None:
    spreads = {f.name for f in dataclasses.fields(Row) if "Spread" in str(f.type)}
    assert spreads == set(TIMES)
